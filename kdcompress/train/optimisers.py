"""Builds optimisers and computes learning-rate schedules from the recipe's `optim:` section."""

from __future__ import annotations

import math

import torch

from kdcompress.methods.base import ParameterSet
from kdcompress.recipe import OptimSection


def build(optim: OptimSection, parameters: ParameterSet) -> torch.optim.Optimizer:
    """Builds the optimiser of one parameter set, in torch's fused form."""
    rate = optim.lr * parameters.lr_scale
    weights = list(parameters.parameters)
    if optim.name == "adamw":
        return torch.optim.AdamW(weights, rate, weight_decay=optim.weight_decay, fused=True)
    optimiser = torch.optim.SGD(
        weights,
        rate,
        momentum=optim.momentum,
        nesterov=optim.nesterov and optim.momentum > 0,  # torch refuses Nesterov without momentum
        weight_decay=optim.weight_decay,
        fused=True,
    )
    if optim.momentum:
        # torch's fused form makes all buffers in its first step. It then fails on a parameter that gets its
        # first gradient later, and leaves the buffers uninitialised if fp16 overflows in that step.
        for weight in weights:
            optimiser.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return optimiser


def factor(optim: OptimSection, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Computes the factor on the base learning rate at a step; a resume needs no state of it.

    Args:
        optim: The recipe's section, or that of a parameter set.
        step: 0-based optimiser step within the phase.
        total_steps: Number of steps of the phase.
        steps_per_epoch: Converts milestones and warm-up from epochs to steps.

    Returns:
        A factor in [0, 1]. one_cycle rises over the first 30 % from 1/25 and falls to 1/250,000, both as half
        cosines (Smith & Topin 2018, with the constants torch uses).
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
