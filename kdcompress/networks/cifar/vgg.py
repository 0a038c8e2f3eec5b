"""VGG networks for small images: 3×3 convolutions with batch norm (after Simonyan and Zisserman, ICLR 2015).

`vgg8` and the single linear layer are those of the distillation literature since CRD (Tian et al., ICLR
2020); state dictionaries have the key names of its code.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdcompress.networks.cifar.initial import he_normal

CONVOLUTIONS: dict[str, tuple[int, int, int, int, int]] = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""Channels of each of the five blocks."""

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five blocks."""


class VGG(nn.Module):
    """Five blocks of convolutions with max-pooling between them.

    Args:
        convolutions: Number of convolutions in each block.
        num_classes: K.
        channels: C of the images.
        image_size: (H, W). Below 64 pixels the fourth and the fifth block work at one resolution: the
            literature's 32-pixel networks pool three times, and three times is what 8 pixels bear.
    """

    def __init__(
        self,
        convolutions: tuple[int, int, int, int, int],
        num_classes: int,
        channels: int,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__()
        inputs = (channels, *WIDTHS[:-1])
        blocks = map(_block, inputs, WIDTHS, convolutions)
        self.block0, self.block1, self.block2, self.block3, self.block4 = blocks
        self.pool0 = nn.MaxPool2d(2)
        self.pool1 = nn.MaxPool2d(2)
        self.pool2 = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2) if min(image_size) >= 64 else nn.Identity()
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(WIDTHS[-1], num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised images `[B, C, H, W]`."""
        x = self.pool0(self.block0(x))
        x = self.pool1(self.block1(x))
        x = self.pool2(self.block2(x))
        x = self.pool3(self.block3(x))
        logits: Tensor = self.classifier(self.pool4(self.block4(x)).flatten(1))
        return logits


def _block(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convolutions):
        layers += [
            nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, 1, 1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
