"""Weights of the classes in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kdcompress.errors import UserError


def scaled_class_weights(
    weights: Literal["none", "balanced"] | Sequence[float] | None,
    labels: Tensor,
    num_classes: int,
    frequency: Tensor | None = None,
) -> Tensor | None:
    """Scales class weights to a mean of 1 over the labelled images.

    Args:
        weights: `balanced`: inversely proportional to the number of images drawn of a class; a list: one per
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
