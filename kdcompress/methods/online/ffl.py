"""Feature fusion learning (Kim et al., ICPR 2020): networks learn from a classifier on their fused maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdcompress.data.batch import DataInfo
from kdcompress.methods.fusion_method import FusionConfig, FusionMethod, of_one_size
from kdcompress.methods.presets import Preset, PublishedFigure, cifar100, imagenet
from kdcompress.methods.shared_norm import SharedBatchNorm2d
from kdcompress.networks.networks import Networks


class FFL(FusionMethod):
    """Trains two branches or networks beside a classifier on their fused last maps.

    Σ_i CE_i + CE_f + ramp · weight · (Σ_i KL(f ‖ i) + KL(mean logits ‖ f)), targets detached; f are the
    logits of the fusion module. It is discarded: the best network on held-out images ships.

    The fusion module normalises by the statistics of all processes' rows, and has an optimiser of its own
    with the recipe's rate and schedule. Maps of different sizes are averaged down to the smallest, and the
    fused map has as many channels as the student's (the authors fuse maps of one shape).

    Source:
        Kim, Hyun, Chung & Kwak, Feature Fusion for Online Mutual Knowledge Distillation, ICPR 2020; the
        authors' code. More than two networks are our extension: their terms are summed.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128.",
            epochs=300, optim={"lr": 0.1, "milestones": [150, 225], "weight_decay": 1e-4},
            form="branches", branches=2, temperature=3.0, weight=1.0, ramp_epochs=80.0, shift=1e-7,
            fusion_weight_decay=1e-5, detach=True,
        ),
        "imagenet": imagenet(
            "No setting of the ramp is known: it has the same share of the run as on CIFAR-100.",
            form="branches", branches=2, temperature=3.0, weight=1.0, shift=1e-7, fusion_weight_decay=1e-5,
            detach=True,
        ),
    }  # fmt: skip
    FIGURES = (
        PublishedFigure("cifar100", "", "cifar/resnet32", 72.18, "PCL paper's table, FFL-S", None),
        PublishedFigure("cifar100", "", "cifar/resnet110", 77.22, "PCL paper's table, FFL-S", None),
    )  # fmt: skip

    class Config(FusionConfig):
        """The defaults are those of the authors' code, with the ramp as a share of the run."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        branches = config.branches if config.form == "branches" else 0
        super().__init__(config, networks, data, branches=branches, own_stages=config.own_stages)
        self.fusion = Fusion(self.channels(), data.num_classes)


class Fusion(nn.Module):
    """Computes logits from the last maps of several networks.

    Concatenation, depthwise 3×3 convolution, batch norm, ReLU, 1×1 convolution to the first network's number
    of channels, batch norm, ReLU, mean over positions, linear layer.

    Args:
        channels: Of each network's map.
        num_classes: K.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        total, width = sum(channels), channels[0]
        self.depthwise = nn.Conv2d(total, total, 3, padding=1, groups=total, bias=False)
        self.norm = SharedBatchNorm2d(total)
        self.pointwise = nn.Conv2d(total, width, 1, bias=False)
        self.pointwise_norm = SharedBatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps `[B, C, H, W]` of each network to logits `[B, K]`."""
        fused = torch.cat(of_one_size(maps), 1)
        fused = self.norm(self.depthwise(fused)).relu()
        fused = self.pointwise_norm(self.pointwise(fused)).relu()
        logits: Tensor = self.classifier(fused.mean((2, 3)))
        return logits
