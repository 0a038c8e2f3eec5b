"""Wide residual networks for small images, of pre-activation blocks (Zagoruyko and Komodakis, BMVC 2016).

Without dropout. State dictionaries have the key names that the distillation literature's code has since CRD.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdcompress.networks.cifar.initial import he_normal


class PreActivationBlock(nn.Module):
    """Norm, activation, convolution, twice: `[B, inputs, H, W]` to `[B, outputs, H/stride, W/stride]`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut: nn.Conv2d | None = None  # this spelling is in the published checkpoints
        if inputs != outputs or stride != 1:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map, before any activation."""
        active = self.relu1(self.bn1(x))
        # A projection starts from the activated map, an identity from the plain one.
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = shortcut + self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out


class Stage(nn.Module):
    """The blocks of one resolution, under the name `layer`."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int) -> None:
        super().__init__()
        rest = [PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(PreActivationBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the stage's map, before any activation."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """A wide residual network of three stages.

    Args:
        depth: 6n + 4 layers, n blocks per stage.
        width: k; the stages have 16k, 32k and 64k channels.
        num_classes: K.
        channels: C of the images.
    """

    def __init__(self, depth: int, width: int, num_classes: int, channels: int) -> None:
        super().__init__()
        assert (depth - 4) % 6 == 0, depth
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(16, 16 * width, blocks, stride=1)
        self.block2 = Stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = Stage(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        he_normal(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised images `[B, C, H, W]`."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = self.relu(self.bn1(x))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits
