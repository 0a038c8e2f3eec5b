"""Losses are computed in float32 or wider, whatever the autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Runs a loss with autocast off and half-precision arguments widened; float64 stays float64."""

    @functools.wraps(loss)
    def widened(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = next((a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            wide = tuple(_widen(a) for a in args)
            return loss(*wide, **{k: _widen(v) for k, v in kwargs.items()})  # type: ignore[arg-type]

    return widened


def _widen(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
