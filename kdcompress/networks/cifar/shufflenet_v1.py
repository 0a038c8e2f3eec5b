"""ShuffleNet for small images: grouped 1×1 convolutions with a channel shuffle (Zhang et al., CVPR 2018).

The distillation literature's variant since CRD (Tian et al., ICLR 2020): a 1×1 stem at full resolution,
and, unlike the paper's figure 2, an activation after the depthwise convolution. State dictionaries have its
key names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcompress.networks.cifar.shuffle import ChannelShuffle

STEM = 24
STAGES = ((240, 4), (480, 8), (960, 4))
"""Channels (for three groups) and blocks of each stage."""


class Unit(nn.Module):
    """A bottleneck beside a shortcut; with stride 2 the shortcut is pooled and concatenated instead of added.

    Args:
        inputs: Channels that come in.
        outputs: Channels of the bottleneck's own result; with stride 2 the unit gives `inputs` more.
        stride: 1 or 2.
        groups: Groups of the 1×1 convolutions; the first stays ungrouped behind the stem.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        super().__init__()
        inner = outputs // 4
        first_groups = 1 if inputs == STEM else groups
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.shuffle1 = ChannelShuffle(first_groups)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, outputs, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the unit's map, after its last activation."""
        inner = self.shuffle1(self.relu1(self.bn1(self.conv1(x))))
        inner = self.relu2(self.bn2(self.conv2(inner)))
        own, shortcut = self.bn3(self.conv3(inner)), self.shortcut(x)
        out: Tensor = self.relu3(torch.cat([own, shortcut], 1) if self.stride == 2 else own + shortcut)
        return out


class ShuffleNetV1(nn.Module):
    """Three stages of units with three groups.

    Args:
        num_classes: K.
        channels: C of the images.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        inputs = (STEM, *(width for width, _ in STAGES))
        self.layer1, self.layer2, self.layer3 = (
            _stage(before, width, blocks) for before, (width, blocks) in zip(inputs, STAGES, strict=False)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(STAGES[-1][0], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised images `[B, C, H, W]`."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, groups: int = 3) -> nn.Sequential:
    # The pooled shortcut brings `inputs` of the first unit's channels.
    first = Unit(inputs, outputs - inputs, 2, groups)
    return nn.Sequential(first, *(Unit(outputs, outputs, 1, groups) for _ in range(blocks - 1)))
