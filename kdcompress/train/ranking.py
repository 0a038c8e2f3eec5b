"""Comparing candidates by their held-out figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

CLEAR = 2.0
"""Standard errors of a lead beyond which it counts. One would be exceeded by chance too often: the best so
far is the highest of many."""


def leads(one: Tensor | None, other: Tensor | None) -> bool:
    """Returns True if a network's figure is higher by more than twice the standard error of the difference.

    Args:
        one: `[N]` parts of the figure, by image (`Task.parts`).
        other: Likewise, of the same images.

    Source:
        McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika
        1947: the variance of the difference is that of the images that one of the two alone gets right.
    """
    assert one is not None
    assert other is not None
    apart = one - other
    return bool(apart.sum() > CLEAR * apart.square().sum().sqrt() * (1 + 1e-9))


def loss_of(figures: Mapping[str, Any]) -> float:
    """Returns the loss, or the divergence from the teacher; infinite if there is neither."""
    loss = figures.get("loss", figures.get("kl"))
    return math.inf if loss is None else float(loss)


def rank(figures: Mapping[str, Any], metric: str) -> tuple[float, float]:
    """Orders figures by the selection metric, then by the lower loss (or divergence from the teacher).

    A few hundred held-out images give many epochs the same accuracy; the earliest of them is rarely the best.
    """
    return figures[metric], -loss_of(figures)
