"""Losses between the shapes that a batch's rows make: their mutual distances and angles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision

CLOSEST = 1e-6
"""Distance below which two rows count as one: the root of the 1e-12 of the authors' code."""


@full_precision
def mutual_distances(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Computes smooth L1 (beta 1) between two distance matrices, mean over all B² entries.

    Each network's Euclidean distances are divided by their own mean over the pairs of different rows, so
    neither the scale nor the width of the features matters.

    Args:
        student_BD: `[B, D]`.
        teacher_BE: `[B, E]`, any width; the caller detaches it.

    Returns:
        Scalar ≥ 0; 0 when one set of rows is the other, moved, turned and scaled, and always for two rows or
        fewer.

    Source:
        Park et al., Relational Knowledge Distillation, CVPR 2019, distance-wise loss. Mean and clamp are
        those of the authors' and the RepDistiller code, which take squared distances from inner products;
        here differences are taken first, so that two equal rows are equal in float32 too.
    """
    return F.smooth_l1_loss(_distances(student_BD), _distances(teacher_BE))


@full_precision
def mutual_angles(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """Computes smooth L1 (beta 1) between two cosine tensors, mean over all B³ entries.

    Entry (i, j, k) is the cosine of the angle between rows j and k as seen from row i. It is 0, without a
    gradient, where j or k is closer to i than `CLOSEST`. Memory per network: B²·D and B³ numbers.

    Args:
        student_BD: `[B, D]`.
        teacher_BE: `[B, E]`, any width; the caller detaches it.

    Returns:
        Scalar in [0, 1.5]; 0 when one set of rows is the other, moved, turned and scaled, and always for one
        row.

    Source:
        Park et al., Relational Knowledge Distillation, CVPR 2019, angle-wise loss.
    """
    return F.smooth_l1_loss(_cosines(student_BD), _cosines(teacher_BE))


def _distances(x_BD: Tensor) -> Tensor:
    rows = x_BD.shape[0]
    distances_BB = torch.cdist(x_BD, x_BD, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=CLOSEST)
    distances_BB = distances_BB.masked_fill(torch.eye(rows, dtype=torch.bool, device=x_BD.device), 0)
    # Clamped, everything off the diagonal is positive: the mean of the positive entries is a sum over
    # B · (B - 1). A single row has none.
    mean = distances_BB.sum().clamp(min=CLOSEST) / max(rows * (rows - 1), 1)
    return distances_BB / mean


def _cosines(x_BD: Tensor) -> Tensor:
    difference_BBD = x_BD.unsqueeze(0) - x_BD.unsqueeze(1)
    squared_BB1 = difference_BBD.square().sum(2, keepdim=True)
    close_BB1 = squared_BB1 < CLOSEST**2
    # The root has no derivative at 0 and a huge one beside it: where there is no direction to speak of, it is
    # not taken.
    norm_BB1 = squared_BB1.masked_fill(close_BB1, 1).sqrt()
    unit_BBD = (difference_BBD / norm_BB1).masked_fill(close_BB1, 0)
    return unit_BBD @ unit_BBD.mT
