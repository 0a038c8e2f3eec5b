"""Targets that are designed and not predicted: labels with a share for the other classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


def designed_labels(
    labels_B: Tensor, classes: int, correct: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Builds distributions with `correct` on the label and the rest spread evenly over the other classes.

    Args:
        labels_B: `[B]` int64, none of them -1.
        classes: K.
        correct: In (0, 1].
        dtype: Type of the result.

    Returns:
        `[B, K]`.

    Source:
        Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020.
    """
    is_label_BK = F.one_hot(labels_B.clamp(min=0), classes).to(dtype)
    return is_label_BK * correct + (1 - is_label_BK) * ((1 - correct) / (classes - 1))


@full_precision
def kl_of_undivided(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """Computes KL(softmax(teacher) ‖ softmax(student)), mean over rows, with no temperature of its own.

    Args:
        student_BK: `[B, K]` logits.
        teacher_BK: `[B, K]`, divided by a temperature by the caller.
    """
    log_target = F.log_softmax(teacher_BK, dim=1)
    return (log_target.exp() * (log_target - F.log_softmax(student_BK, dim=1))).sum(1).mean()
