"""A small student whose batch norms have statistics (a fresh one would hide every fusion bug), and images."""

from __future__ import annotations

import torch
from torch import nn

from kdcompress.data.input_spec import InputSpec
from kdcompress.networks.build import build

MODEL = "cifar/resnet8"
CLASSES = ("cat", "dog", "eel", "fox", "gnu")
SPEC = InputSpec(3, 16, 16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), resize=18, crop=16)


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every batch norm means, variances, weights and biases as after a training."""
    generator = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                (part.running_mean, -0.5, 0.5),
                (part.running_var, 0.5, 2.0),
                (part.weight.data, 0.5, 1.5),
                (part.bias.data, -0.5, 0.5),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
            part.num_batches_tracked.fill_(7)
    return network


def trained_student(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(build(MODEL, num_classes=len(CLASSES), channels=3, image_size=(16, 16)), seed)


def images(count: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batches(count: int = 50, size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A test split of `count` images; its labels cycle through the classes."""
    everything, labels = images(count), torch.arange(count) % len(CLASSES)
    return list(zip(everything.split(size), labels.split(size), strict=True))
