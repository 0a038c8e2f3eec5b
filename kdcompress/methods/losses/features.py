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
