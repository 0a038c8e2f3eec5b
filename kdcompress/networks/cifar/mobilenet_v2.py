"""MobileNetV2 for small images: inverted residuals with linear bottlenecks (Sandler et al., CVPR 2018).

The distillation literature's variant since CRD (Tian et al., ICLR 2020): plain ReLU, an expanding
convolution in every block, and only the stem and three blocks down-sample (32 pixels end as 2). It is used
at half width. State dictionaries have the key names of CRD's code.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdcompress.networks.cifar.initial import he_normal

EXPANSION = 6
SETTINGS = (
    # expansion, channels at full width, blocks, stride of the first
    (1, 16, 1, 1),
    (EXPANSION, 24, 2, 1),
    (EXPANSION, 32, 3, 2),
    (EXPANSION, 64, 4, 2),
    (EXPANSION, 96, 3, 1),
    (EXPANSION, 160, 3, 2),
    (EXPANSION, 320, 1, 1),
)
FEATURES = 1280


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project: `[B, inputs, H, W]` to `[B, outputs, H/stride, W/stride]`."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.has_shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's map; no activation follows the projection."""
        out: Tensor = self.conv(x)
        return x + out if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """Seven groups of inverted residuals.

    Args:
        width: Multiplies the channels of every group (not the 1280 features).
        num_classes: K.
        channels: C of the images.
    """

    def __init__(self, width: float, num_classes: int, channels: int) -> None:
        super().__init__()
        before = int(32 * width)
        self.conv1 = _convolution(channels, before, 3, stride=2)
        self.blocks = nn.ModuleList()
        for expansion, full, count, first_stride in SETTINGS:
            outputs = int(full * width)
            group = nn.Sequential()
            for stride in (first_stride, *[1] * (count - 1)):
                group.append(InvertedResidual(before, outputs, stride, expansion))
                before = outputs
            self.blocks.append(group)
        self.conv2 = _convolution(before, FEATURES, 1, stride=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        linear = nn.Linear(FEATURES, num_classes)
        self.classifier = nn.Sequential(linear)
        he_normal(self)
        nn.init.normal_(linear.weight, 0, 0.01)
        nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of normalised images `[B, C, H, W]`."""
        x = self.conv1(x)
        for group in self.blocks:
            x = group(x)
        logits: Tensor = self.classifier(self.avgpool(self.conv2(x)).flatten(1))
        return logits


def _convolution(inputs: int, outputs: int, side: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )
