"""Losses between two views of the same images."""

from __future__ import annotations

import torch.nn.functional as F
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


@full_precision
def kl_mean_over_classes(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Computes KL(teacher ‖ student) of softened logits as a mean over rows and classes, without T²."""
    log_student = F.log_softmax(student_BK / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_BK / temperature, dim=1)
    return (log_teacher.exp() * (log_teacher - log_student)).mean()
