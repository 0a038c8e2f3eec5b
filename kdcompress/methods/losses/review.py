"""The loss between a fused map of the student and a map of the teacher, at several scales."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision

PYRAMID = (4, 2, 1)
"""Sides that the maps are averaged down to, beside their own."""


@full_precision
def hierarchical_context(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Computes the weighted mean of squared differences of two maps at several scales.

    Each scale is a mean over all elements. Full size weighs 1; each of the sides 4, 2 and 1 that is smaller
    than the map weighs half of the scale before it; the sum is divided by the weights' sum.

    Args:
        student_BCHW: `[B, C, H, W]`.
        teacher_BCHW: The same shape; the caller detaches it.

    Returns:
        Scalar ≥ 0; 0 when the maps are equal, and their plain mean squared difference when they have one
        pixel.

    Source:
        Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021, hierarchical context loss (HCL);
        the weights are those of the authors' code.
    """
    assert student_BCHW.shape == teacher_BCHW.shape
    total = F.mse_loss(student_BCHW, teacher_BCHW)
    weight = weights = 1.0
    for side in PYRAMID:
        if side >= min(student_BCHW.shape[2:]):
            continue
        weight /= 2
        weights += weight
        student_BCll = F.adaptive_avg_pool2d(student_BCHW, side)
        total = total + weight * F.mse_loss(student_BCll, F.adaptive_avg_pool2d(teacher_BCHW, side))
    return total / weights
