"""Weights that grow over the first part of a training."""

from __future__ import annotations

import math


def exponential_ramp(epoch: int, epochs: float) -> float:
    """Computes the weight exp(-5 · (1 - epoch / epochs)²) of an epoch.

    Args:
        epoch: 0-based.
        epochs: Length of the ramp; with less than one epoch there is none.

    Returns:
        0.0067 in the first epoch of a long ramp, 1 from epoch `epochs` on.

    Source:
        Laine & Aila, Temporal Ensembling, ICLR 2017; used by the authors of ONE, OKDDip and FFL, with 80.
    """
    if epochs < 1:
        return 1.0
    return math.exp(-5.0 * (1.0 - min(epoch, epochs) / epochs) ** 2)
