"""Soft labels of which only the likeliest classes were kept, and the loss against them.

Shape letters: M classes kept of each row.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


@full_precision
def smoothed_soft_labels(classes_BM: Tensor, probabilities_BM: Tensor, num_classes: int) -> Tensor:
    """Builds full distributions; the probability that is not stored is spread over the other classes.

    Args:
        classes_BM: `[B, M]` int64, distinct within a row, M < K.
        probabilities_BM: `[B, M]`, of sum ≤ 1. If rounding brought the sum above 1, the others get 0.
        num_classes: K.

    Returns:
        `[B, K]`.

    Source:
        Shen & Xing, A Fast Knowledge Distillation Framework for Visual Recognition (FKD), ECCV 2022,
        "marginal smoothing"; the authors' code.
    """
    stored = classes_BM.shape[1]
    assert stored < num_classes, f"{stored} of {num_classes} classes leave none to spread the rest over"
    rest_B1 = (1 - probabilities_BM.sum(1, keepdim=True)).clamp(min=0) / (num_classes - stored)
    return rest_B1.repeat(1, num_classes).scatter(1, classes_BM, probabilities_BM)


@full_precision
def renormalised_soft_labels(classes_BM: Tensor, probabilities_BM: Tensor, num_classes: int) -> Tensor:
    """Builds full distributions; the stored classes share all the probability, others get 0.

    Args:
        classes_BM: `[B, M]` int64, distinct within a row.
        probabilities_BM: `[B, M]`, of sum > 0.
        num_classes: K.

    Returns:
        `[B, K]`.

    Source:
        Shen & Xing, FKD, ECCV 2022, "marginal re-normalisation"; the authors' code.
    """
    shares_BM = probabilities_BM / probabilities_BM.sum(1, keepdim=True)
    return shares_BM.new_zeros(len(shares_BM), num_classes).scatter(1, classes_BM, shares_BM)


@full_precision
def soft_label_cross_entropy(student_BK: Tensor, target_BK: Tensor) -> Tensor:
    """Computes the cross-entropy with target distributions at T = 1, mean over rows.

    Args:
        student_BK: `[B, K]` logits.
        target_BK: `[B, K]` probabilities, a constant.

    Returns:
        Scalar ≥ 0; the target's mean entropy where the student's softmax equals it.

    Source:
        Shen & Xing, FKD, ECCV 2022; the authors' code.
    """
    return -(target_BK * F.log_softmax(student_BK, dim=1)).sum(1).mean()


@full_precision
def probabilities(logits_BK: Tensor) -> Tensor:
    """Computes the softmax over classes, `[B, K]`."""
    return logits_BK.softmax(1)
