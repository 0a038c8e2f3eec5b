"""Pearson's correlation of two networks' softened predictions, within rows and within columns."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision

GUARD = 1e-8
"""Added to the product of the norms. Not a formality: a class that no image of the batch comes near has a
column of tiny probabilities, whose correlation would otherwise count, and push, as much as any other's."""


@full_precision
def inter_class(
    student_BK: Tensor, teacher_BK: Tensor, temperature: float, *, squared_factor: bool = True
) -> Tensor:
    """Computes T² · mean over rows of (1 - correlation of both softmaxes over the classes).

    Args:
        student_BK: `[B, K]` logits.
        teacher_BK: `[B, K]` logits, detached by the caller.
        temperature: T > 0, of both softmaxes.
        squared_factor: True to multiply by T², as the code does and the paper's listing does not.

    Returns:
        Scalar in [0, 2·T²]; 0 when every row of probabilities is a positive multiple of the other network's,
        plus a constant.

    Source:
        Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022.
    """
    return _distance(student_BK, teacher_BK, temperature, squared_factor, along=1)


@full_precision
def intra_class(
    student_BK: Tensor, teacher_BK: Tensor, temperature: float, *, squared_factor: bool = True
) -> Tensor:
    """Computes T² · mean over classes of (1 - correlation of both probabilities over the batch).

    Args:
        student_BK: `[B, K]` logits of the whole batch: it is no mean over rows.
        teacher_BK: `[B, K]` logits, detached by the caller.
        temperature: T > 0, of both softmaxes.
        squared_factor: True to multiply by T², as the code does.

    Returns:
        Scalar in [0, 2·T²]; 0 when every column is a positive multiple of the other network's, plus a
            constant.

    Source:
        Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022.
    """
    return _distance(student_BK, teacher_BK, temperature, squared_factor, along=0)


def _distance(
    student: Tensor, teacher: Tensor, temperature: float, squared_factor: bool, along: int
) -> Tensor:
    p, q = ((z / temperature).softmax(1) for z in (student, teacher))
    p, q = (x - x.mean(along, keepdim=True) for x in (p, q))
    norms = torch.linalg.vector_norm(p, dim=along) * torch.linalg.vector_norm(q, dim=along)
    distance: Tensor = (1 - (p * q).sum(along) / (norms + GUARD)).mean()
    return temperature**2 * distance if squared_factor else distance
