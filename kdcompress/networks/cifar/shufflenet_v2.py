"""ShuffleNetV2 for small images: half of the channels pass by a unit unchanged (Ma et al., ECCV 2018).

The distillation literature's variant since CRD (Tian et al., ICLR 2020) has a 1×1 stem at full resolution.
State dictionaries have its key names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdcompress.networks.cifar.shuffle import ChannelShuffle

STEM = 24
STAGES = ((116, 4), (232, 8), (464, 4))
"""Channels (at width ×1) and blocks of each stage."""
FEATURES = 1024


class Unit(nn.Module):
    """One half of the channels passes by, the other is convolved: `[B, C, H, W]` to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the unit's map."""
        passed, own = x.chunk(2, 1)
        own = self.relu1(self.bn1(self.conv1(own)))
        own = self.relu3(self.bn3(self.conv3(self.bn2(self.conv2(own)))))
        out: Tensor = self.shuffle(torch.cat([passed, own], 1))
        return out


class DownUnit(nn.Module):
    """Both halves are made from all channels: `[B, inputs, H, W]` to `[B, outputs, H/2, W/2]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU()
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the unit's map."""
        left = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.relu3(self.bn3(self.conv3(x)))
        right = self.relu5(self.bn5(self.conv5(self.bn4(self.conv4(right)))))
        out: Tensor = self.shuffle(torch.cat([left, right], 1))
        return out


class ShuffleNetV2(nn.Module):
    """Three stages of units and a 1×1 convolution to 1024 features.

    Args:
        num_classes: K.
        channels: C of the images.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu1 = nn.ReLU()
        inputs = (STEM, *(width for width, _ in STAGES))
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(DownUnit(before, width), *(Unit(width) for _ in range(blocks - 1)))
            for before, (width, blocks) in zip(inputs, STAGES, strict=False)
        )
        self.conv2 = nn.Conv2d(STAGES[-1][0], FEATURES, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(FEATURES)
        self.relu2 = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(FEATURES, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised images `[B, C, H, W]`."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits
