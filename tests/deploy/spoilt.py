"""A network that int8 ruins on purpose (one scale must do for all of a tensor), and one that it does not."""

from __future__ import annotations

import torch
from torch import nn

from kdcompress.data.input_spec import InputSpec
from kdcompress.deploy.calibration import calibration
from kdcompress.deploy.formats import onnx as onnx_format

SIDE, CLASSES = 4, 5
PLAIN = InputSpec(3, SIDE, SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)


class TwoLayers(nn.Module):
    """conv - ReLU - fc. The first channel is `loud` times the others, and fc does not listen to it."""

    def __init__(self, loud: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(4 * SIDE * SIDE, CLASSES)
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator) - 0.5
        with torch.no_grad():
            self.conv.weight[0] *= loud
            self.fc.weight.view(CLASSES, 4, -1)[:, 0] = 0

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))


def written(network: nn.Module, path, spec=PLAIN, **metadata):
    onnx_format.write(network, spec, path, metadata={"labels": "[]", **metadata})
    return path


def pictures(count: int, seed: int = 1, spec=PLAIN) -> torch.Tensor:
    shape = (count, spec.channels, spec.height, spec.width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def calibrated(count: int = 40, spec=PLAIN):
    everything = pictures(count, 7, spec)
    return calibration(torch.arange(count) % CLASSES, lambda at: everything[at].split(16), count, 0)
