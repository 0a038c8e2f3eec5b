"""Moving average of a network's parameters that a method trains against."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """Averages tensors over steps and counts the steps; the count is part of the method's checkpoint.

    The decay of step s (0-based) is min(1 - 1 / (window_share · s + 1), decay): the first step copies.

    Args:
        decay: The largest, in [0, 1).
        window_share: Until `decay` is reached the average covers about this share of the steps so far.
            1: all of them evenly, the initial weights of a short run included.
    """

    steps: Tensor

    def __init__(self, decay: float, window_share: float = 1.0) -> None:
        super().__init__()
        self._decay, self._window_share = decay, window_share
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, averages: Iterable[Tensor], values: Iterable[Tensor]) -> None:
        """Moves each average towards its value, in place; equal in all processes if the values are."""
        window = self._window_share * self.steps.double() + 1
        weight = (1 / window).clamp(min=1 - self._decay)
        for average, value in zip(averages, values, strict=True):
            average.lerp_(value, weight.to(average.dtype))
        self.steps += 1
