"""Knowledge review (Chen et al., CVPR 2021): fuses deep with shallow maps and imitates the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcompress.data.batch import Batch, DataInfo
from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.feature_kd import FeatureKD
from kdcompress.methods.presets import (
    Preset,
    cifar100,
    crd_table,
    imagenet,
    resnet34_to_resnet18,
    resnet50_to_mobilenet_v1,
)
from kdcompress.networks.activations import Activations, Want
from kdcompress.networks.networks import Networks

WIDEST = 512
"""Channels of the fused maps at most; the authors' value."""


class ReviewKD(FeatureKD):
    """ce_weight · CE(labels) + weight · ramp · Σ HCL(fused map, teacher map) + kd_weight · KL.

    Levels are the stages that both networks have at one resolution, and the pooled vector as a map of one
    pixel. From the deepest level to the shallowest, a fusion module (thrown away) joins the student's map
    with the fused map of the level below it and gives a map of the teacher's shape, which is held to the
    teacher's by the hierarchical context loss.

    Source:
        Chen, Liu, Zhao & Jia, Distilling Knowledge via Knowledge Review, CVPR 2021, and the authors' code,
        whose CIFAR script leaves the teacher's batch norm in training mode; here it is frozen. The fusion's
        convolutions start as the authors' (He's uniform of slope 1), its gates as torch's.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            "Published with batches of 128, a learning rate of 0.1, Nesterov momentum and own teachers. "
            "weight is 0.6 for resnet56 to resnet20, 1 for resnet110 to resnet32, 8 for resnet32x4 to "
            "ShuffleNetV2.",
            weight=5.0, warmup_epochs=20, ce_weight=1.0, kd_weight=0.0,
        ),
        "imagenet": imagenet(
            "weight is 8 for resnet50 to MobileNetV1.",
            weight=1.0, warmup_epochs=20, ce_weight=1.0, kd_weight=0.0,
        ),
    }  # fmt: skip
    FIGURES = (
        *crd_table(
            "ReviewKD paper, CVPR 2021, own teachers",
            76.12, 75.09, None, None, None, 75.63, None, None, None, None, 77.45, None, None,
        ),
        *crd_table(
            "ReviewKD paper, CVPR 2021, own teachers, another or unknown weight",
            None, None, 71.89, None, 73.89, None, 74.84, 70.37, 69.89, None, None, 77.78, None,
            preset=None,
        ),
        resnet34_to_resnet18(71.61, "ReviewKD paper, CVPR 2021"),
        resnet50_to_mobilenet_v1(72.56, "ReviewKD paper, CVPR 2021, with another weight", None),
    )  # fmt: skip

    class Config(FeatureKD.Config):
        """Each level is a weighted mean of mean squared differences; the other terms are means over rows."""

        weight: float = Field(5.0, gt=0)
        """Weight of the sum over levels. 5 for pairs of wide and 32x4 ResNets; 0.6 for ResNet-56 to 20; 1 for
        ResNet-110 to 32 and, on ImageNet, for 34 to 18; 8 for ResNet-32x4 to ShuffleNetV2 and, on ImageNet,
        for ResNet-50 to MobileNetV1."""
        warmup_share: float = Field(20 / 240, ge=0, le=1)
        """Share of the run's epochs, W of them, over which the term grows to its weight: epoch / W, at most
        1, with the first epoch 0, which is trained without this term. No ramp where W is below 1, in a run
        of fewer than 12 epochs."""
        warmup_epochs: int | None = Field(None, ge=0)
        """W, as published: 20 of 240 epochs, and 20 of 100 on ImageNet. Replaces warmup_share. 0: no ramp."""
        student_maps: Literal["stages", "pre"] = "stages"
        """The student's maps after or before their activation function; the teacher's are before it."""

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        super().__init__(config, networks, data)
        assert networks.teacher is not None
        ours, theirs = networks.student.shapes(), networks.teacher.shapes()
        self.pairs = losses.pairs(ours, theirs)
        if not self.pairs or ours.pooled is None or theirs.pooled is None:
            described = [
                losses.stage_maps(network.model, shapes)
                + ("" if shapes.pooled is not None else " without a linear classifier")
                for network, shapes in ((networks.student, ours), (networks.teacher, theirs))
            ]
            raise NetworkError(
                "method reviewkd: needs a stage and a pooled vector of both networks, student "
                f"{described[0]} and teacher {described[1]}; name them in student.taps and teacher.taps: "
                "{stage1: MODULE.PATH, classifier: MODULE.PATH}"
            )
        deepest = ours.pooled.shape[1]
        middle = min(WIDEST, deepest)
        channels = [(deepest, theirs.pooled.shape[1])]
        channels += [(pair.student_shape[0], pair.teacher_shape[0]) for pair in reversed(self.pairs)]
        # The deepest first, as they are run.
        self.fusions = nn.ModuleList(
            Fusion(before, middle, after, reviews=level > 0) for level, (before, after) in enumerate(channels)
        )

    @classmethod
    def reads(cls, config: Config) -> tuple[Want, Want]:
        """Returns stage maps, the teacher's before activation, and both pooled vectors."""
        return frozenset({"pooled", config.student_maps}), frozenset({"pooled", "pre"})

    def compare(self, ours: Activations, theirs: Activations, batch: Batch) -> dict[str, Tensor]:
        """Returns the term review."""
        maps, targets = self.levels(ours, theirs)
        with self.networks.student.autocast():
            fused = self.fuse(maps, targets)
        return {"review": self.review(fused, targets)}

    def levels(self, ours: Activations, theirs: Activations) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the student's and the teacher's map of each level, deepest first."""
        assert ours.pooled is not None
        assert theirs.pooled is not None
        student_maps = ours.pre if self.config.student_maps == "pre" else ours.stages
        maps, targets = [ours.pooled[:, :, None, None]], [theirs.pooled[:, :, None, None]]
        for pair in reversed(self.pairs):
            maps.append(student_maps[pair.student])
            targets.append(theirs.pre[pair.teacher])
        return maps, targets

    def fuse(self, maps: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """Fuses the student's maps into one of the shape of each of the teacher's.

        Args:
            maps: The student's maps, deepest first.
            targets: The teacher's maps; only their sizes are read.
        """
        outputs: list[Tensor] = []
        below: Tensor | None = None
        for fusion, map_BCHW, target in zip(self.fusions, maps, targets, strict=True):
            below, output = fusion(map_BCHW, below, target.shape[2:])
            outputs.append(output)
        return outputs

    def review(self, fused: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Computes the weighted term; 0 in the first epoch of a ramp."""
        level_losses = [losses.hierarchical_context(f, t) for f, t in zip(fused, targets, strict=True)]
        return self.config.weight * self.ramp() * torch.stack(level_losses).sum()

    def ramp(self) -> float:
        """Returns the warm-up's factor in this epoch, in [0, 1]."""
        warmup = self.epochs_of(self.config.warmup_share, self.config.warmup_epochs)
        return min(1.0, self.epoch / warmup) if warmup >= 1 else 1.0


class Fusion(nn.Module):
    """Fuses a map with the fused map of the level below, with two gates per pixel.

    Args:
        before: Channels of the student's map.
        middle: Channels of the fused map.
        after: Channels of the teacher's map.
        reviews: True if there is a deeper level.
    """

    def __init__(self, before: int, middle: int, after: int, *, reviews: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(before, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.gates = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if reviews else None
        self.expand = nn.Sequential(nn.Conv2d(middle, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))
        for sequence in (self.reduce, self.expand):
            # Torch's own slope of √5 gives weights smaller by √3. Before a batch norm only their direction
            # counts, and smaller weights turn faster: a learning rate in effect three times as high.
            nn.init.kaiming_uniform_(cast(nn.Conv2d, sequence[0]).weight, a=1)

    def forward(self, map_BCHW: Tensor, below: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Returns the fused map `[B, middle, *size]` and the output `[B, after, *size]`.

        Args:
            map_BCHW: The student's map.
            below: The fused map of the level below, of any size; None at the deepest.
            size: (H, W) of the teacher's map.
        """
        fused = self.reduce(map_BCHW)
        if self.gates is not None:
            assert below is not None
            below = _resized(below, fused.shape[2:])
            own, reviewed = self.gates(torch.cat([fused, below], 1)).split(1, 1)
            fused = fused * own + below * reviewed
        fused = _resized(fused, size)
        return fused, self.expand(fused)


def _resized(map_BCHW: Tensor, size: torch.Size) -> Tensor:
    return map_BCHW if map_BCHW.shape[2:] == size else F.interpolate(map_BCHW, size=size, mode="nearest")
