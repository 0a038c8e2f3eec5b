"""Networks of several families, with batch-norm statistics that differ from a fresh network's."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

from kdcompress.networks.build import build
from kdcompress.networks.tapped import Tapped

SMALL = {
    # model -> side of its images in pixels
    "cifar/resnet8x4": 32,
    "cifar/wrn-16-1": 32,
    "cifar/vgg8": 32,
    "cifar/mobilenet-v2": 32,
    "cifar/shufflenet-v1": 32,
    "cifar/shufflenet-v2": 32,
    "torchvision/resnet18": 64,
    "torchvision/mobilenet_v2": 64,
    "torchvision/mobilenet_v3_small": 64,
    "torchvision/mnasnet0_5": 64,
    "torchvision/shufflenet_v2_x0_5": 64,
    "torchvision/efficientnet_b0": 64,
    "torchvision/regnet_y_400mf": 64,
    "torchvision/densenet121": 64,
}


def tapped(model: str, *, num_classes: int = 5, channels: int = 3, seed: int = 0, **taps: str) -> Tapped:
    """A network whose batch norms do something, with its taps."""
    side = SMALL.get(model, 32)
    network = copy.deepcopy(_built(model, num_classes, channels, side, seed))
    return Tapped(
        network, model, image_size=(side, side), channels=channels,
        mean=(0.5, 0.4, 0.3)[:channels], std=(0.2, 0.25, 0.3)[:channels], taps=taps or None,
    )  # fmt: skip


@functools.cache
def _built(model: str, num_classes: int, channels: int, side: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = build(model, num_classes=num_classes, channels=channels, image_size=(side, side))
    randomise_batch_norm(network)
    return network


def randomise_batch_norm(network: nn.Module) -> None:
    """A fresh batch norm is nearly the identity in evaluation mode, so a test with one catches nothing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)


def images_for(tapped: Tapped, batch: int = 3) -> torch.Tensor:
    """Random images in [0, 1] of the network's size."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(batch, tapped.channels, *tapped.image_size, generator=generator)
