"""A temperature that is learnt against the student, and the curriculum of how strongly."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

Curriculum = Literal["cosine", "linear", "linear_reference"]


def learnt_temperature(raw: Tensor, start: float, width: float, gradient_factor: float) -> Tensor:
    """Computes T = start + width · σ(raw); the gradient of `raw` is multiplied by a factor.

    Args:
        raw: Unbounded, of any shape.
        start: The lowest T.
        width: Width of the range of T.
        gradient_factor: λ; below 0, a descent of the loss by everything else is an ascent by `raw`.

    Returns:
        T, in the shape of `raw`, in (start, start + width).

    Source:
        Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023. In the authors' code too the
        minus sign stands in λ and not in the reversal layer.
    """
    # The bracket is exactly 0: λ changes the gradient and never the value.
    turned = raw.detach() + gradient_factor * (raw - raw.detach())
    return start + width * turned.sigmoid()


def reversal(epoch: int, ramp_epochs: int, curriculum: Curriculum, *, start: float, end: float) -> float:
    """Computes λ of an epoch: from `start` to `end` over a ramp, then `end`.

    Args:
        epoch: Counted from 1; 0 gives `start`.
        ramp_epochs: Length L of the ramp.
        curriculum: Half a cosine wave; a straight line; or the straight line of the authors' class, which
            stops a step before its end (at (L - 1) / L) and leaves `start` out.
        start: 0 in the paper.
        end: -1 in the paper.

    Returns:
        The factor for `learnt_temperature`.

    Source:
        Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023; the authors' code.
    """
    progress = min(epoch, ramp_epochs) / ramp_epochs
    if curriculum == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2 * (start - end) + end
    if curriculum == "linear":
        return start + (end - start) * progress
    return (end - start) * min(epoch, ramp_epochs - 1) / ramp_epochs
