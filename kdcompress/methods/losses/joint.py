"""Joint classes of label and rotation: class 4·y + k is class y turned k times."""

from __future__ import annotations

import torch
from torch import Tensor

from kdcompress.methods.losses.widening import full_precision


def joint_labels(labels_B: Tensor) -> Tensor:
    """Computes the joint labels of the rows that `four_rotations` returns.

    Args:
        labels_B: `[B]` int64; -1 means no label.

    Returns:
        `[4·B]` int64: 4·y + k in row 4·i + k, and -1 in all four rows of an image without a label.
    """
    turns_4 = torch.arange(4, device=labels_B.device)
    labels_B1 = labels_B.unsqueeze(1)
    return (4 * labels_B1 + turns_4).where(labels_B1 >= 0, -1).flatten()


@full_precision
def joint_to_class_logits(joint_RJ: Tensor) -> Tensor:
    """Sums the joint logits of each class over its four rotations.

    Args:
        joint_RJ: `[R, 4·K]`.

    Returns:
        `[R, K]`.
    """
    return joint_RJ.reshape(len(joint_RJ), -1, 4).sum(2)
