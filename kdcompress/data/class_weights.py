"""Weights of the classes in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kdcompress.errors import UserError

UNEQUAL = 2.0
"""Ratio of the largest class to the smallest from which classes are unequal. Those of ImageNet's training
split (732 to 1,300 images) are equal."""


def unequal_classes(counts: Sequence[int]) -> bool:
    """Returns True if the largest class has at least `UNEQUAL` times the images of the smallest.

    Args:
        counts: Number of images by class; classes without any do not count.
    """
    present = [count for count in counts if count]
    return len(present) > 1 and max(present) >= UNEQUAL * min(present)


def scaled_class_weights(
    weights: Literal["auto", "none", "balanced"] | Sequence[float] | None,
    labels: Tensor,
    num_classes: int,
    frequency: Tensor | None = None,
) -> Tensor | None:
    """Scales class weights to a mean of 1 over the labelled images.

    Args:
        weights: `auto`: `balanced` where the classes are unequal (`unequal_classes`), else equal. `balanced`:
            inversely proportional to the number of images drawn of a class; a list: one per
            class; `none` or None: equal weights.
        labels: `[N]` int64; -1 means no label.
        num_classes: K.
        frequency: `[N]` how often each image is drawn, where they are not drawn equally often.

    Returns:
        `[K]` float32, or None for equal weights.

    Raises:
        UserError: A list of another length, with a negative weight, or without a positive one.
    """
    if weights is None or weights == "none":
        return None
    if weights == "auto":
        if not unequal_classes(torch.bincount(labels[labels >= 0], minlength=num_classes).tolist()):
            return None
        weights = "balanced"
    has_label = labels >= 0
    drawn = None if frequency is None else frequency[has_label]
    counts = torch.bincount(labels[has_label], weights=drawn, minlength=num_classes).double()
    if float(counts.sum()) == 0:
        raise UserError("train.class_weights: no training image has a label to weight")
    if isinstance(weights, str):
        raw = torch.where(counts > 0, 1 / counts, 1)  # of a class without images: anything finite
    else:
        raw = torch.tensor(list(weights), dtype=torch.float64)
        if len(raw) != num_classes:
            raise UserError(
                f"train.class_weights: expected {num_classes} numbers, one per class, got {len(raw)}"
            )
        if not bool(((raw >= 0) & raw.isfinite()).all()) or float((raw * counts).sum()) == 0:
            raise UserError(
                "train.class_weights: expected numbers from 0 on, and a positive one for a class with images"
            )
    return (raw * counts.sum() / (raw * counts).sum()).float()
