"""Networks for small images, as the distillation literature compares them on CIFAR-100."""

from __future__ import annotations

import re

from torch import nn

from kdcompress.errors import NetworkError, Uncuttable, WeightsError, suggest
from kdcompress.networks.cifar import (
    mobilenet_v2,
    resnet,
    resnet_imagenet_style,
    shufflenet_v1,
    shufflenet_v2,
    vgg,
    wrn,
)
from kdcompress.networks.families._chain import Chain, by_stride, chain, flat, head
from kdcompress.networks.families._headless import without_classifier
from kdcompress.networks.families._pretrained import Pretrained

CHANNELS = (1, 3)
CUTTABLE = "every cifar/ network"
NAMES = {
    "resnet8": "ResNet of 8 layers: 0.08 M parameters",
    "resnet14": "ResNet of 14 layers: 0.18 M parameters",
    "resnet20": "ResNet of 20 layers: 0.28 M parameters",
    "resnet32": "ResNet of 32 layers: 0.47 M parameters",
    "resnet44": "ResNet of 44 layers: 0.67 M parameters",
    "resnet56": "ResNet of 56 layers: 0.86 M parameters",
    "resnet110": "ResNet of 110 layers: 1.74 M parameters",
    "resnet8x4": "ResNet of 8 layers, four times as wide: 1.23 M parameters",
    "resnet32x4": "ResNet of 32 layers, four times as wide: 7.43 M parameters",
    "wrn-16-1": "Wide ResNet of 16 layers, width 1: 0.18 M parameters",
    "wrn-16-2": "Wide ResNet of 16 layers, width 2: 0.70 M parameters",
    "wrn-16-4": "Wide ResNet of 16 layers, width 4: 2.77 M parameters",
    "wrn-28-10": "Wide ResNet of 28 layers, width 10: 36.5 M parameters",
    "wrn-40-1": "Wide ResNet of 40 layers, width 1: 0.57 M parameters",
    "wrn-40-2": "Wide ResNet of 40 layers, width 2: 2.26 M parameters",
    "wrn-40-4": "Wide ResNet of 40 layers, width 4: 8.97 M parameters",
    "vgg8": "VGG of 8 layers with batch norm: 3.97 M parameters",
    "vgg11": "VGG of 11 layers with batch norm: 9.28 M parameters",
    "vgg13": "VGG of 13 layers with batch norm: 9.46 M parameters",
    "vgg16": "VGG of 16 layers with batch norm: 14.8 M parameters",
    "vgg19": "VGG of 19 layers with batch norm: 20.1 M parameters",
    "mobilenet-v2": "MobileNetV2 at half width: 0.81 M parameters",
    "shufflenet-v1": "ShuffleNet with three groups: 0.95 M parameters",
    "shufflenet-v2": "ShuffleNetV2 at width 1: 1.36 M parameters",
    "resnet18": "ResNet-18 with a stem for small images: 11.2 M parameters",
    "resnet34": "ResNet-34 with a stem for small images: 21.3 M parameters",
    "resnet50": "ResNet-50 with a stem for small images: 23.7 M parameters",
}
PATTERN = r"wrn-\d+-\d+"
"""Names beyond `NAMES` that are understood: wrn-DEPTH-WIDTH, DEPTH = 6n + 4."""
MOST_DEPTH, MOST_WIDTH = 1204, 64
"""The deepest published residual network for CIFAR has 1202 layers; 1204 is the next depth here."""
MOST_DEPTH_TIMES_SQUARE = 40_000
"""A Wide ResNet has about 0.0152 M parameters for each; the largest published, 106-16, has 27,136."""

_Block = type[resnet_imagenet_style.BasicBlock] | type[resnet_imagenet_style.Bottleneck]
_IMAGENET_STYLE: dict[str, tuple[_Block, tuple[int, int, int, int]]] = {
    "resnet18": (resnet_imagenet_style.BasicBlock, (2, 2, 2, 2)),
    "resnet34": (resnet_imagenet_style.BasicBlock, (3, 4, 6, 3)),
    "resnet50": (resnet_imagenet_style.Bottleneck, (3, 4, 6, 3)),
}


def build(name: str, *, num_classes: int, channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Builds a network of this family with random weights; see `networks.build.build`."""
    if num_classes == 0:
        classifier = build(name, num_classes=1, channels=channels, image_size=image_size)
        return without_classifier(classifier, f"cifar/{name}")
    if re.fullmatch(PATTERN, name):
        depth, width = (int(number[:9]) for number in name.split("-")[1:])
        if not 10 <= depth <= MOST_DEPTH or (depth - 4) % 6 or not 1 <= width <= MOST_WIDTH:
            raise NetworkError(
                f"cifar/{name:.60}: the depth must be 10, 16, 22, … (6n + 4, at most {MOST_DEPTH}) and the "
                f"width 1 to {MOST_WIDTH}"
            )
        if depth * width**2 > MOST_DEPTH_TIMES_SQUARE:
            raise NetworkError(
                f"cifar/{name}: the depth times the width squared must be at most {MOST_DEPTH_TIMES_SQUARE:,}"
                ", which gives 600 M parameters; choose a smaller depth or width"
            )
        return wrn.WideResNet(depth, width, num_classes, channels)
    if name not in NAMES:
        raise NetworkError(f"unknown network {name!r} of family 'cifar'{suggest(name, NAMES)}")
    if name in _IMAGENET_STYLE:
        block, counts = _IMAGENET_STYLE[name]
        return resnet_imagenet_style.ResNet(block, counts, num_classes, channels)
    if name in vgg.CONVOLUTIONS:
        return vgg.VGG(vgg.CONVOLUTIONS[name], num_classes, channels, image_size)
    match name:
        case "mobilenet-v2":
            return mobilenet_v2.MobileNetV2(0.5, num_classes, channels)
        case "shufflenet-v1":
            return shufflenet_v1.ShuffleNetV1(num_classes, channels)
        case "shufflenet-v2":
            return shufflenet_v2.ShuffleNetV2(num_classes, channels)
    depth = int(name.removeprefix("resnet").removesuffix("x4"))
    widths = resnet.WIDE if name.endswith("x4") else resnet.NARROW
    return resnet.ResNet(depth, widths, num_classes, channels)


def segments(name: str, network: nn.Module) -> Chain:
    """Splits the network into a chain; see `networks.build.segments`."""
    match network:
        case resnet.ResNet():
            stem = nn.Sequential(network.conv1, network.bn1, network.relu)
            stages = [network.layer1, network.layer2, network.layer3]
            return chain(stem, stages, head(network.avgpool, network.fc))
        case resnet_imagenet_style.ResNet():
            stem = nn.Sequential(network.conv1, network.bn1, network.relu)
            stages = [network.layer1, network.layer2, network.layer3, network.layer4]
            return chain(stem, stages, head(network.avgpool, network.linear))
        case wrn.WideResNet():
            last = nn.Sequential(*network.block3.layer, network.bn1, network.relu)
            stages = [network.block1.layer, network.block2.layer, last]
            return chain(network.conv1, stages, head(network.avgpool, network.fc))
        case vgg.VGG():
            pools = (network.pool0, network.pool1, network.pool2, network.pool3)
            blocks = (network.block1, network.block2, network.block3, network.block4)
            parts = [part for pair in zip(pools, blocks, strict=True) for part in pair]
            stages = [network.block0, *by_stride(parts)]
            return chain(nn.Sequential(), stages, head(network.pool4, network.classifier))
        case mobilenet_v2.MobileNetV2():
            stages = by_stride([*flat(network.blocks), network.conv2])
            return chain(network.conv1, stages, head(network.avgpool, network.classifier))
        case shufflenet_v1.ShuffleNetV1():
            stem = nn.Sequential(network.conv1, network.bn1, network.relu)
            stages = [network.layer1, network.layer2, network.layer3]
            return chain(stem, stages, head(network.avgpool, network.linear))
        case shufflenet_v2.ShuffleNetV2():
            stem = nn.Sequential(network.conv1, network.bn1, network.relu1)
            last = nn.Sequential(*network.layer3, network.conv2, network.bn2, network.relu2)
            return chain(stem, [network.layer1, network.layer2, last], head(network.avgpool, network.linear))
    raise Uncuttable(f"cifar/{name}: a {type(network).__name__} is not a network that can be cut")


def pretrained(name: str, enum_name: str, progress: bool, connect_s: float | None = None) -> Pretrained:
    """Always refused: nobody publishes weights of this family under a stable name.

    Raises:
        WeightsError: With what to do instead.
    """
    raise WeightsError(
        f"cifar/{name}: there are no published weights {enum_name!r}; pass a .safetensors, .pt or .pth file"
    )
