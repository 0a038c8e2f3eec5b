"""Losses between features: vectors and maps."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


@full_precision
def euclidean(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Computes the Euclidean norm of the whole `[B, D]` difference: not squared, not averaged.

    The gradient has norm 1 whatever the distance or the batch; at distance 0 it is 0.

    Source:
        Zhang et al., Self-Distillation (TPAMI 2022), hint loss; the authors' code.
    """
    distance: Tensor = torch.linalg.vector_norm(student_BD - teacher_BD)
    return distance


@full_precision
def active_squared_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Sums the squared differences of the elements that are positive on either side.

    A sum over rows too, so that it grows with the batch: its weights are tiny (1e-6).

    Args:
        student: Any shape.
        teacher: The same shape; the caller detaches it.

    Returns:
        Scalar ≥ 0; 0 when both are equal, or nowhere positive.

    Source:
        An unofficial code of BYOT (luanyunteng/pytorch-be-your-own-teacher).
    """
    active = (student > 0) | (teacher > 0)
    return ((student - teacher).square() * active).sum()
