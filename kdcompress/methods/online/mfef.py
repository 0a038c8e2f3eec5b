"""Multi-scale fusion (Zou et al., arXiv 2022): FFL on multi-scale maps, our own reading of the abstract."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from kdcompress.data.batch import DataInfo
from kdcompress.methods.fusion_method import FusionConfig, FusionMethod, of_one_size
from kdcompress.methods.presets import Preset, cifar100, imagenet
from kdcompress.methods.shared_norm import SharedBatchNorm2d
from kdcompress.networks.networks import Networks

_OURS = (
    "Our own reading of the abstract: neither code nor settings of MFEF were available. The values are those "
    "of FFL."
)


class MFEF(FusionMethod):
    """Trains two branches or networks beside a classifier on their attended multi-scale maps.

    This is our own design after the abstract of MFEF, and claims no parity with the paper. Each network's
    last map is split into groups of channels that are convolved one after the other and concatenated, then
    weighted by a gate per channel and a gate per position; a 1×1 convolution fuses the maps of all networks.
    The loss is that of FFL: Σ_i CE_i + CE_f + ramp · weight · (Σ_i KL(f ‖ i) + KL(mean logits ‖ f)), targets
    detached. The fusion module is discarded.

    Source:
        Zou, Teng & Niu, Multi-scale Feature Extraction and Fusion for Online Knowledge Distillation, arXiv
        2206.08224: the abstract alone, which names multi-scale extraction, dual attention and feature fusion.
        Ours: groups as in Res2Net (Gao et al., TPAMI 2021), the channel gate of SENet (Hu et al., CVPR 2018),
        the spatial gate of CBAM (Woo et al., ECCV 2018), the last map as the place, and the loss.
    """

    PRESETS: ClassVar[dict[str, Preset]] = {
        "cifar100": cifar100(
            _OURS,
            epochs=300, optim={"lr": 0.1, "milestones": [150, 225], "weight_decay": 1e-4},
            form="branches", branches=2, temperature=3.0, weight=1.0, ramp_epochs=80.0, shift=1e-7,
            fusion_weight_decay=1e-5, detach=True,
        ),
        "imagenet": imagenet(
            _OURS,
            form="branches", branches=2, temperature=3.0, weight=1.0, shift=1e-7, fusion_weight_decay=1e-5,
            detach=True,
        ),
    }  # fmt: skip

    class Config(FusionConfig):
        """The loss of FFL, and a fusion module of our own design."""

        groups: int = Field(4, ge=1)
        """Groups of channels of each map, or the largest divisor that they share with its channels; 1: no
        multi-scale extraction."""
        reduction: int = Field(16, ge=1)
        """Channels divided by those of the channel gate's hidden layer, which has at least 8."""
        spatial_kernel: int = Field(7, ge=1)
        """Side of the spatial gate's convolution; odd."""

        @field_validator("spatial_kernel")
        @classmethod
        def _check_odd(cls, value: int) -> int:
            if value % 2 == 0:
                raise ValueError("expected an odd number, so that the gate has the map's size")
            return value

    config: Config

    def __init__(self, config: Config, networks: Networks, data: DataInfo) -> None:
        branches = config.branches if config.form == "branches" else 0
        super().__init__(config, networks, data, branches=branches, own_stages=config.own_stages)
        self.fusion = MultiScaleFusion(
            self.channels(), data.num_classes, config.groups, config.reduction, config.spatial_kernel
        )


class MultiScaleFusion(nn.Module):
    """Computes logits from the last maps of several networks.

    Args:
        channels: Of each network's map.
        num_classes: K.
        groups: As in the Config.
        reduction: As in the Config.
        kernel: Side of the spatial gate's convolution.
    """

    def __init__(
        self, channels: Sequence[int], num_classes: int, groups: int, reduction: int, kernel: int
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(MultiScale(c, groups) for c in channels)
        self.channel_gates = nn.ModuleList(ChannelGate(c, reduction) for c in channels)
        self.spatial_gates = nn.ModuleList(SpatialGate(kernel) for _ in channels)
        width = channels[0]
        self.pointwise = nn.Conv2d(sum(channels), width, 1, bias=False)
        self.norm = SharedBatchNorm2d(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps `[B, C, H, W]` of each network to logits `[B, K]`."""
        attended = [
            spatial(channel(scale(map_BCHW)))
            for scale, channel, spatial, map_BCHW in zip(
                self.scales, self.channel_gates, self.spatial_gates, of_one_size(maps), strict=True
            )
        ]
        fused = self.norm(self.pointwise(torch.cat(attended, 1))).relu()
        logits: Tensor = self.classifier(fused.mean((2, 3)))
        return logits


class MultiScale(nn.Module):
    """Convolves groups of channels one after the other; each sees the one before, so scales grow.

    y₁ = x₁, y₂ = conv(x₂), yᵢ = conv(xᵢ + yᵢ₋₁); every convolution is 3×3 with batch norm and ReLU.

    Args:
        channels: C.
        groups: Number of groups; the greatest common divisor with C is taken.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = math.gcd(channels, groups)
        width = channels // self.groups
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), SharedBatchNorm2d(width), nn.ReLU()
            )
            for _ in range(self.groups - 1)
        )

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Returns a map of the same shape."""
        first, *rest = map_BCHW.chunk(self.groups, 1)
        outputs = [first]
        for number, (block, group) in enumerate(zip(self.blocks, rest, strict=True)):
            outputs.append(block(group if number == 0 else group + outputs[-1]))
        return torch.cat(outputs, 1)


class ChannelGate(nn.Module):
    """Multiplies every channel by a factor in (0, 1) computed from the means of all channels."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.layers = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Returns a map of the same shape."""
        gate_BC: Tensor = self.layers(map_BCHW.mean((2, 3))).sigmoid()
        return map_BCHW * gate_BC[:, :, None, None]


class SpatialGate(nn.Module):
    """Multiplies every position by a factor in (0, 1) computed from mean and maximum over the channels."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Returns a map of the same shape."""
        summary = torch.stack([map_BCHW.mean(1), map_BCHW.amax(1)], 1)
        gate: Tensor = self.conv(summary).sigmoid()
        return map_BCHW * gate
