"""Convolutional networks of torchvision, with its ImageNet weights."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from torchvision import models
from torchvision.models import (
    VGG,
    ConvNeXt,
    DenseNet,
    EfficientNet,
    MNASNet,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
)

from kdcompress.atomic import sha256_of
from kdcompress.errors import NetworkError, Uncuttable, WeightsError, suggest
from kdcompress.networks.families._chain import Chain, by_stride, chain, flat, head
from kdcompress.networks.families._headless import without_classifier
from kdcompress.networks.families._pretrained import Pretrained, fetch_weights
from kdcompress.networks.read_checkpoint import read_state_dict

CHANNELS = (3,)
CUTTABLE = (
    "torchvision/ ResNet, ResNeXt, Wide ResNet, MobileNet, MNASNet, ShuffleNet, EfficientNet, RegNet, "
    "ConvNeXt, DenseNet and VGG"
)
NAMES = {
    "resnet18": "11.7 M parameters, 1.8 GMACs, ImageNet top-1 69.8 % (IMAGENET1K_V1)",
    "resnet34": "21.8 M parameters, 3.7 GMACs, ImageNet top-1 73.3 % (IMAGENET1K_V1)",
    "resnet50": "25.6 M parameters, 4.1 GMACs, ImageNet top-1 80.9 % (IMAGENET1K_V2)",
    "resnet101": "44.5 M parameters, 7.8 GMACs, ImageNet top-1 81.9 % (IMAGENET1K_V2)",
    "resnet152": "60.2 M parameters, 11.5 GMACs, ImageNet top-1 82.3 % (IMAGENET1K_V2)",
    "wide_resnet50_2": "68.9 M parameters, 11.4 GMACs, ImageNet top-1 81.6 % (IMAGENET1K_V2)",
    "wide_resnet101_2": "126.9 M parameters, 22.8 GMACs, ImageNet top-1 82.5 % (IMAGENET1K_V2)",
    "resnext50_32x4d": "25.0 M parameters, 4.2 GMACs, ImageNet top-1 81.2 % (IMAGENET1K_V2)",
    "resnext101_32x8d": "88.8 M parameters, 16.4 GMACs, ImageNet top-1 82.8 % (IMAGENET1K_V2)",
    "resnext101_64x4d": "83.5 M parameters, 15.5 GMACs, ImageNet top-1 83.2 % (IMAGENET1K_V1)",
    "mobilenet_v2": "3.5 M parameters, 0.30 GMACs, ImageNet top-1 72.2 % (IMAGENET1K_V2)",
    "mobilenet_v3_small": "2.5 M parameters, 0.06 GMACs, ImageNet top-1 67.7 % (IMAGENET1K_V1)",
    "mobilenet_v3_large": "5.5 M parameters, 0.22 GMACs, ImageNet top-1 75.3 % (IMAGENET1K_V2)",
    "mnasnet0_5": "2.2 M parameters, 0.10 GMACs, ImageNet top-1 67.7 % (IMAGENET1K_V1)",
    "mnasnet0_75": "3.2 M parameters, 0.21 GMACs, ImageNet top-1 71.2 % (IMAGENET1K_V1)",
    "mnasnet1_0": "4.4 M parameters, 0.31 GMACs, ImageNet top-1 73.5 % (IMAGENET1K_V1)",
    "mnasnet1_3": "6.3 M parameters, 0.53 GMACs, ImageNet top-1 76.5 % (IMAGENET1K_V1)",
    "shufflenet_v2_x0_5": "1.4 M parameters, 0.04 GMACs, ImageNet top-1 60.6 % (IMAGENET1K_V1)",
    "shufflenet_v2_x1_0": "2.3 M parameters, 0.14 GMACs, ImageNet top-1 69.4 % (IMAGENET1K_V1)",
    "shufflenet_v2_x1_5": "3.5 M parameters, 0.30 GMACs, ImageNet top-1 73.0 % (IMAGENET1K_V1)",
    "shufflenet_v2_x2_0": "7.4 M parameters, 0.58 GMACs, ImageNet top-1 76.2 % (IMAGENET1K_V1)",
    "efficientnet_b0": "5.3 M parameters, 0.39 GMACs, ImageNet top-1 77.7 % (IMAGENET1K_V1)",
    "efficientnet_b1": "7.8 M parameters, 0.69 GMACs, ImageNet top-1 79.8 % (IMAGENET1K_V2)",
    "efficientnet_b2": "9.1 M parameters, 1.1 GMACs, ImageNet top-1 80.6 % (IMAGENET1K_V1)",
    "efficientnet_b3": "12.2 M parameters, 1.8 GMACs, ImageNet top-1 82.0 % (IMAGENET1K_V1)",
    "efficientnet_b4": "19.3 M parameters, 4.4 GMACs, ImageNet top-1 83.4 % (IMAGENET1K_V1)",
    "efficientnet_b5": "30.4 M parameters, 10.3 GMACs, ImageNet top-1 83.4 % (IMAGENET1K_V1)",
    "efficientnet_b6": "43.0 M parameters, 19.1 GMACs, ImageNet top-1 84.0 % (IMAGENET1K_V1)",
    "efficientnet_b7": "66.3 M parameters, 37.7 GMACs, ImageNet top-1 84.1 % (IMAGENET1K_V1)",
    "efficientnet_v2_s": "21.5 M parameters, 8.4 GMACs, ImageNet top-1 84.2 % (IMAGENET1K_V1)",
    "efficientnet_v2_m": "54.1 M parameters, 24.6 GMACs, ImageNet top-1 85.1 % (IMAGENET1K_V1)",
    "efficientnet_v2_l": "118.5 M parameters, 56.1 GMACs, ImageNet top-1 85.8 % (IMAGENET1K_V1)",
    "regnet_x_400mf": "5.5 M parameters, 0.41 GMACs, ImageNet top-1 74.9 % (IMAGENET1K_V2)",
    "regnet_x_800mf": "7.3 M parameters, 0.80 GMACs, ImageNet top-1 77.5 % (IMAGENET1K_V2)",
    "regnet_x_1_6gf": "9.2 M parameters, 1.6 GMACs, ImageNet top-1 79.7 % (IMAGENET1K_V2)",
    "regnet_x_3_2gf": "15.3 M parameters, 3.2 GMACs, ImageNet top-1 81.2 % (IMAGENET1K_V2)",
    "regnet_x_8gf": "39.6 M parameters, 8.0 GMACs, ImageNet top-1 81.7 % (IMAGENET1K_V2)",
    "regnet_x_16gf": "54.3 M parameters, 15.9 GMACs, ImageNet top-1 82.7 % (IMAGENET1K_V2)",
    "regnet_x_32gf": "107.8 M parameters, 31.7 GMACs, ImageNet top-1 83.0 % (IMAGENET1K_V2)",
    "regnet_y_400mf": "4.3 M parameters, 0.40 GMACs, ImageNet top-1 75.8 % (IMAGENET1K_V2)",
    "regnet_y_800mf": "6.4 M parameters, 0.83 GMACs, ImageNet top-1 78.8 % (IMAGENET1K_V2)",
    "regnet_y_1_6gf": "11.2 M parameters, 1.6 GMACs, ImageNet top-1 80.9 % (IMAGENET1K_V2)",
    "regnet_y_3_2gf": "19.4 M parameters, 3.2 GMACs, ImageNet top-1 82.0 % (IMAGENET1K_V2)",
    "regnet_y_8gf": "39.4 M parameters, 8.5 GMACs, ImageNet top-1 82.8 % (IMAGENET1K_V2)",
    "regnet_y_16gf": "83.6 M parameters, 15.9 GMACs, ImageNet top-1 82.9 % (IMAGENET1K_V2)",
    "regnet_y_32gf": "145.0 M parameters, 32.3 GMACs, ImageNet top-1 83.4 % (IMAGENET1K_V2)",
    "convnext_tiny": "28.6 M parameters, 4.5 GMACs, ImageNet top-1 82.5 % (IMAGENET1K_V1)",
    "convnext_small": "50.2 M parameters, 8.7 GMACs, ImageNet top-1 83.6 % (IMAGENET1K_V1)",
    "convnext_base": "88.6 M parameters, 15.4 GMACs, ImageNet top-1 84.1 % (IMAGENET1K_V1)",
    "convnext_large": "197.8 M parameters, 34.4 GMACs, ImageNet top-1 84.4 % (IMAGENET1K_V1)",
    "densenet121": "8.0 M parameters, 2.8 GMACs, ImageNet top-1 74.4 % (IMAGENET1K_V1)",
    "densenet161": "28.7 M parameters, 7.7 GMACs, ImageNet top-1 77.1 % (IMAGENET1K_V1)",
    "densenet169": "14.1 M parameters, 3.4 GMACs, ImageNet top-1 75.6 % (IMAGENET1K_V1)",
    "densenet201": "20.0 M parameters, 4.3 GMACs, ImageNet top-1 76.9 % (IMAGENET1K_V1)",
    "vgg11": "132.9 M parameters, 7.6 GMACs, ImageNet top-1 69.0 % (IMAGENET1K_V1)",
    "vgg11_bn": "132.9 M parameters, 7.6 GMACs, ImageNet top-1 70.4 % (IMAGENET1K_V1)",
    "vgg13": "133.0 M parameters, 11.3 GMACs, ImageNet top-1 69.9 % (IMAGENET1K_V1)",
    "vgg13_bn": "133.1 M parameters, 11.3 GMACs, ImageNet top-1 71.6 % (IMAGENET1K_V1)",
    "vgg16": "138.4 M parameters, 15.5 GMACs, ImageNet top-1 71.6 % (IMAGENET1K_V1)",
    "vgg16_bn": "138.4 M parameters, 15.5 GMACs, ImageNet top-1 73.4 % (IMAGENET1K_V1)",
    "vgg19": "143.7 M parameters, 19.6 GMACs, ImageNet top-1 72.4 % (IMAGENET1K_V1)",
    "vgg19_bn": "143.7 M parameters, 19.6 GMACs, ImageNet top-1 74.2 % (IMAGENET1K_V1)",
}

_LEAST_PIXELS = {"convnext": 32, "densenet": 29, "vgg": 32}
"""Below them a down-sampling without padding finds nothing left; by how the names begin."""

_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)$")
"""The published files write `norm.1`, the networks `norm1`."""


def build(name: str, *, num_classes: int, channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Builds a network of this family with random weights; see `networks.build.build`."""
    _check(name)
    least = next((pixels for start, pixels in _LEAST_PIXELS.items() if name.startswith(start)), 0)
    if min(image_size) < least:
        raise NetworkError(
            f"torchvision/{name}: needs images of at least {least}×{least} pixels, got "
            f"{image_size[0]}×{image_size[1]}; set data.image_size, or choose a cifar/ network"
        )
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes or 1)
    return network if num_classes else without_classifier(network, f"torchvision/{name}")


def pretrained(name: str, enum_name: str, progress: bool, connect_s: float | None = None) -> Pretrained:
    """Loads published ImageNet weights of a network.

    Args:
        name: One of `NAMES`.
        enum_name: torchvision's name for them, such as `IMAGENET1K_V2`.
        progress: True: shows the download.
        connect_s: Limit in seconds until the server answers; None: see `fetch`.

    Raises:
        WeightsError: No such weights.
        DownloadError: They cannot be fetched.
    """
    _check(name)
    known = models.get_model_weights(name).__members__
    if enum_name not in known:
        raise WeightsError(f"torchvision/{name}: no weights {enum_name!r}{suggest(enum_name, known)}")
    weights = known[enum_name]
    file_name = weights.url.rsplit("/", 1)[1]
    found = re.search(r"-([0-9a-f]{8,})\.", file_name)
    digits = found.group(1) if found else None
    # Who has used torchvision before may have them already.
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if digits is None or not path.is_file() or not sha256_of(path).startswith(digits):
        path = fetch_weights(weights.url, sha256_prefix=digits, progress=progress, connect_s=connect_s)
    expected = weights.transforms()
    note = "Trained on ImageNet-1K, whose terms allow non-commercial research and education."
    if "license" in weights.meta:
        note = f"Weights under the licence {weights.meta['license']}. {note}"
    return Pretrained(
        state_dict={_DENSENET_KEY.sub(r"\1\2", key): value for key, value in read_state_dict(path).items()},
        mean=tuple(expected.mean),
        std=tuple(expected.std),
        size=(expected.crop_size[0], expected.crop_size[0]),
        class_names=tuple(weights.meta["categories"] or ()) or None,  # vgg16 has weights without a classifier
        license_note=note,
        sha256=sha256_of(path),
    )


def default_weights(name: str) -> str | None:
    """Returns torchvision's name for the best weights that it publishes for a network; fetches nothing."""
    _check(name)
    best: str = models.get_model_weights(name)["DEFAULT"].name
    return best


def published_top1(name: str) -> tuple[float, str]:
    """Returns the best published ImageNet-1K top-1 (0 to 1) of weights trained on it alone, and their name.

    Nothing is fetched.
    """
    _check(name)
    known = models.get_model_weights(name).__members__
    scores = {
        enum_name: float(weights.meta["_metrics"]["ImageNet-1K"]["acc@1"])
        for enum_name, weights in known.items()
        if enum_name.startswith("IMAGENET1K_V")
    }
    best = max(scores, key=scores.__getitem__)
    return scores[best] / 100, best


def segments(name: str, network: nn.Module) -> Chain:
    """Splits the network into a chain; see `networks.build.segments`."""
    stem: nn.Module
    stages: list[nn.Module]
    match network:
        case ResNet():
            stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
            stages = [network.layer1, network.layer2, network.layer3, network.layer4]
            return chain(stem, stages, head(network.avgpool, network.fc))
        case MobileNetV2():
            stem, *blocks = network.features
            return chain(stem, by_stride(blocks), head(nn.AdaptiveAvgPool2d(1), network.classifier))
        case MobileNetV3() | EfficientNet():
            stem, *blocks = flat(network.features)
            return chain(stem, by_stride(blocks), head(network.avgpool, network.classifier))
        case MNASNet():
            *layers, conv, norm, activation = network.layers
            # Eight layers without a shortcut come first; the last convolution belongs to the last stage.
            blocks = [*flat(layers[8:]), nn.Sequential(conv, norm, activation)]
            return chain(
                nn.Sequential(*layers[:8]),
                by_stride(blocks),
                head(nn.AdaptiveAvgPool2d(1), network.classifier),
            )
        case ShuffleNetV2():
            stem = nn.Sequential(network.conv1, network.maxpool)
            last = nn.Sequential(*network.stage4, network.conv5)
            return chain(
                stem, [network.stage2, network.stage3, last], head(nn.AdaptiveAvgPool2d(1), network.fc)
            )
        case RegNet():
            stages = list(network.trunk_output.children())
            return chain(network.stem, stages, head(network.avgpool, network.fc))
        case ConvNeXt():
            stem, first, *pairs = network.features
            # Between two stages stands a layer norm with a strided convolution; it opens the later one.
            later = [
                nn.Sequential(down, *blocks) for down, blocks in zip(pairs[::2], pairs[1::2], strict=True)
            ]
            # Its classifier normalises and flattens by itself.
            return chain(stem, [first, *later], nn.Sequential(network.avgpool, network.classifier))
        case DenseNet():
            return _densenet(network)
        case VGG():
            return _vgg(network)
    raise Uncuttable(f"torchvision/{name}: a {type(network).__name__} is not a network that can be cut")


def _densenet(network: DenseNet) -> Chain:
    parts = dict(network.features.named_children())
    stem = nn.Sequential(parts["conv0"], parts["norm0"], parts["relu0"], parts["pool0"])
    last = nn.Sequential(parts["transition3"], parts["denseblock4"], parts["norm5"])
    middle = [nn.Sequential(parts[f"transition{i}"], parts[f"denseblock{i + 1}"]) for i in (1, 2)]
    stages = [nn.Sequential(parts["denseblock1"]), *middle, last]
    # The last map is what `features` gives; the network applies the activation behind it.
    pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return chain(stem, stages, head(pool, network.classifier))


def _vgg(network: VGG) -> Chain:
    *layers, last_pool = network.features
    # The stem is the first convolution with what follows it up to and including its activation.
    split = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.ReLU)) + 1
    stages = by_stride(layers[split:])
    return chain(nn.Sequential(*layers[:split]), stages, head(last_pool, network.avgpool, network.classifier))


def _check(name: str) -> None:
    if name not in NAMES:
        raise NetworkError(f"unknown network {name!r} of family 'torchvision'{suggest(name, NAMES)}")
