"""Optimisers and learning-rate schedules, as the recipe's `optim:` section names them."""

from __future__ import annotations

import math

import torch

from kdcompress.methods.base import ParameterSet
from kdcompress.recipe import OptimSection


def build(optim: OptimSection, parameters: ParameterSet) -> torch.optim.Optimizer:
    """An optimiser over one parameter set, fused where torch has a fused form."""
    rate = optim.lr * parameters.lr_scale
    weights = list(parameters.parameters)
    if optim.name == "adamw":
        return torch.optim.AdamW(weights, rate, weight_decay=optim.weight_decay, fused=True)
    return torch.optim.SGD(
        weights,
        rate,
        momentum=optim.momentum,
        nesterov=optim.nesterov and optim.momentum > 0,  # torch refuses Nesterov without momentum
        weight_decay=optim.weight_decay,
        fused=True,
    )


def factor(optim: OptimSection, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """What the base learning rate is multiplied by at a step; pure, so a resume needs no state of it.

    Args:
        optim: The section.
        step: 0-based optimiser step within the phase.
        total_steps: Of the phase.
        steps_per_epoch: To read milestones and warm-up given in epochs.

    Returns:
        In [0, 1]. one_cycle rises over the first 30 % from 1/25 and falls to 1/250,000, both as half cosines
        (Smith & Topin 2018, with the constants torch uses).
    """
    warmup = _steps(optim.warmup, total_steps, steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    position = (step - warmup) / max(1, total_steps - warmup)
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "cosine":
        return _half_cosine(1.0, 0.0, position)
    if optim.schedule == "multistep":
        passed = sum(step >= _steps(m, total_steps, steps_per_epoch) for m in optim.milestones)
        return 0.1**passed
    rise, low, end = 0.3, 1 / 25, 1 / 250_000
    if position < rise:
        return _half_cosine(low, 1.0, position / rise)
    return _half_cosine(1.0, end, (position - rise) / (1 - rise))


def _steps(share_or_epochs: float, total_steps: int, steps_per_epoch: int) -> int:
    unit = total_steps if share_or_epochs < 1 else steps_per_epoch
    return round(share_or_epochs * unit)


def _half_cosine(start: float, end: float, position: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * position)) / 2
