"""Methods without networks, layers with stored weights, and gradients with explicit zeros."""

from __future__ import annotations

import types

import torch
from torch import nn

from kdcompress.data.batch import Batch, DataInfo, View
from kdcompress.methods.base import find_method
from kdcompress.methods.stage_pairs import StagePairs


def method(name, num_classes, *, peers=0, label_smoothing=0.0, **config):
    """A method with its Config, beside networks that nobody runs: golden files give the outputs
    themselves."""
    cls = find_method(name)
    info = DataInfo(
        num_classes, torch.zeros(0, dtype=torch.int64), (8, 8), 1, label_smoothing=label_smoothing
    )
    made = cls.__new__(cls)
    networks = types.SimpleNamespace(student=None, teacher=None, peers=(None,) * peers)
    # The constructors of methods and of StagePairs measure networks, which are not here.
    first = StagePairs if issubclass(cls, StagePairs) else cls
    if "full_weight_epochs" in cls.Config.model_fields:
        config = {"full_weight_epochs": 0, **config}  # the weights as published, however short the run
    super(first, made).__init__(cls.Config(**config), networks, info)
    return made


def student_of(forward):
    """A stand-in for a student, for methods whose `losses` only call it.

    Args:
        forward: Computes its outputs, by name, from the images of a batch.
    """
    return lambda images, want=None: types.SimpleNamespace(**forward(images))


def batch_of(views, labels, indices=None):
    """A batch whose views hold `views`, of whatever shape the stand-in for a student reads."""
    indices = torch.arange(len(labels)) if indices is None else indices
    made = tuple(View(images, indices, number) for number, images in enumerate(views))
    return Batch(made, labels, indices)


def fill(z, layer, prefix):
    """Puts a file's weights into a layer, of whatever widths the file has."""
    for name, parameter in layer.named_parameters():
        parameter.data = z.tensor(f"{prefix}_{name}")
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.running_mean, layer.running_var = torch.zeros_like(layer.weight), torch.ones_like(layer.weight)


def gradients(total, inputs):
    """d(total)/d(input), zeros where nothing flows."""
    found = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]
