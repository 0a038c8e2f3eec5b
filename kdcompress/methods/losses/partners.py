"""Pairs of images of one class within a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def next_of_class(labels_B: Tensor) -> Tensor:
    """Finds for each row the next row of its class, going on at the first row after the last.

    Args:
        labels_B: `[B]` int64.

    Returns:
        `[B]` int64 positions; a row that is alone in its class gets its own.
    """
    rows = len(labels_B)
    places_B = torch.arange(rows, device=labels_B.device)
    steps_BB = (places_B.unsqueeze(0) - places_B.unsqueeze(1) - 1) % rows  # the own row is farthest
    same_BB = labels_B.unsqueeze(0) == labels_B.unsqueeze(1)
    return torch.where(same_BB, steps_BB, rows).argmin(1)
