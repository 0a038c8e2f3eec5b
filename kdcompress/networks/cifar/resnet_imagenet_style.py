"""The ImageNet residual networks of four stages with a stem for small images (He et al., CVPR 2016, table 1).

The stem is one 3×3 convolution of stride 1 without max-pooling, as the distillation literature has it on
CIFAR-100 since CRD (Tian et al., ICLR 2020); state dictionaries have the key names of its code.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdcompress.networks.cifar.initial import he_normal

WIDTHS = (64, 128, 256, 512)
"""Channels of the four stages, before the bottleneck's expansion."""


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: `[B, inputs, H, W]` to `[B, width, H/stride, W/stride]`."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inputs, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map, after its last activation."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """Narrow, filter, widen: `[B, inputs, H, W]` to `[B, 4 width, H/stride, W/stride]`."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map, after its last activation."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        inner = self.relu2(self.bn2(self.conv2(inner)))
        out: Tensor = self.relu3(self.bn3(self.conv3(inner)) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """A residual network of four stages.

    Args:
        block: Class of the blocks.
        counts: Blocks of each stage.
        num_classes: K.
        channels: C of the images.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        counts: tuple[int, int, int, int],
        num_classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        out = [width * block.expansion for width in WIDTHS]
        self.layer1 = _stage(block, WIDTHS[0], WIDTHS[0], counts[0], stride=1)
        self.layer2 = _stage(block, out[0], WIDTHS[1], counts[1], stride=2)
        self.layer3 = _stage(block, out[1], WIDTHS[2], counts[2], stride=2)
        self.layer4 = _stage(block, out[2], WIDTHS[3], counts[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(out[3], num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised images `[B, C, H, W]`."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, count: int, stride: int
) -> nn.Sequential:
    rest = [block(width * block.expansion, width, 1) for _ in range(count - 1)]
    return nn.Sequential(block(inputs, width, stride), *rest)
