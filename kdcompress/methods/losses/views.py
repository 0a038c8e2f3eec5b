"""Losses between two views of the same images."""

from __future__ import annotations

from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


@full_precision
def mean_difference(a_BD: Tensor, b_BD: Tensor, *, over: str = "rows") -> Tensor:
    """Computes the squared distance of two means.

    Args:
        a_BD: `[B, D]` features of one view, of all processes.
        b_BD: `[B, D]` of the other.
        over: rows: means over the batch, squared differences summed over features (linear maximum mean
            discrepancy). all: means over rows and features.

    Returns:
        Scalar ≥ 0.
    """
    if over == "all":
        return (a_BD.mean() - b_BD.mean()).square()
    return (a_BD.mean(0) - b_BD.mean(0)).square().sum()
