"""Residual networks for small images: three stages of basic blocks (He et al., CVPR 2016, §4.2).

The widened ones (`resnet8x4`, `resnet32x4`) and the projection shortcuts are those that the distillation
literature has used since CRD (Tian et al., ICLR 2020); state dictionaries have the key names of its code.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdcompress.networks.cifar.initial import he_normal

NARROW = (16, 16, 32, 64)
"""Channels of the stem and of the three stages, as in the ResNet paper."""

WIDE = (32, 64, 128, 256)
"""The same for the networks called ×4: the stages are four times as wide, the stem twice."""


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: `[B, inputs, H, W]` to `[B, outputs, H/stride, W/stride]`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map, after its last activation."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.bn2(self.conv2(inner)) + shortcut)
        return out


class ResNet(nn.Module):
    """A residual network of three stages.

    Args:
        depth: 6n + 2 layers, n blocks per stage.
        widths: Channels of the stem and of the three stages.
        num_classes: K.
        channels: C of the images.
    """

    def __init__(
        self, depth: int, widths: tuple[int, int, int, int], num_classes: int, channels: int
    ) -> None:
        super().__init__()
        assert (depth - 2) % 6 == 0, depth
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised images `[B, C, H, W]`."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)
