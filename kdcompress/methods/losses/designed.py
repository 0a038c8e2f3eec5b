"""Targets that are designed and not predicted: labels with a share for the other classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
