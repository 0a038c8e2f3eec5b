"""Draws the calibration images: un-augmented training images, balanced over the classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcompress.data.random_bits import permutation
from kdcompress.deploy.accuracy import as_input

BATCH = 16
"""Images per call; the ranges do not depend on it."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Images to calibrate with.

    Args:
        batches: Batches of at most `BATCH` images, `[B, C, H, W]` float32 in [0, 1].
        seed: They were drawn with.
        sha256: Sha256 of their pixels, in order.
    """

    batches: tuple[NDArray[np.float32], ...]
    seed: int
    sha256: str

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    def first(self, count: int) -> NDArray[np.float32]:
        """Returns the first images, `[min(count, N), C, H, W]`."""
        return np.concatenate(self.batches[: -(-count // BATCH)])[:count]

    def to_json(self) -> dict[str, Any]:
        """Describes the calibration images in the metadata of a file."""
        return {"split": "train", "images": len(self), "seed": self.seed, "sha256": self.sha256}


def draw_balanced(labels_N: Tensor, count: int, seed: int) -> Tensor:
    """Selects at most count positions, as equally over the classes as their sizes allow.

    What a small class cannot give, the larger ones give in equal parts. Images without a label count as one
    more class, so a set without labels is drawn from uniformly.

    Args:
        labels_N: `[N]` int64 of the training split; -1 means no label.
        count: How many; all of them if there are fewer.
        seed: Decides which, together with N and nothing else.

    Returns:
        `[min(count, N)]` int64, in turn through the classes: the first of them are balanced too.
    """
    order = permutation(seed, 0, len(labels_N))
    _, classes = torch.unique(labels_N[order], return_inverse=True)
    # Each image's place among those of its class: taking by place goes through the classes in turn.
    rank = torch.empty(len(order), dtype=torch.int64)
    for number in range(int(classes.max()) + 1 if len(order) else 0):
        of_class = (classes == number).nonzero().flatten()
        rank[of_class] = torch.arange(len(of_class))
    return order[torch.argsort(rank, stable=True)[:count]]


def calibration(
    labels_N: Tensor, read: Callable[[Tensor], Iterable[Tensor]], count: int, seed: int
) -> Calibration:
    """Draws and reads the images.

    Args:
        labels_N: `[N]` int64 of the training split, N > 0.
        read: Positions to un-augmented images in [0, 1], in batches `[B, C, H, W]` of whatever size.
        count: How many.
        seed: Decides which.
    """
    images = as_input(torch.cat([part.cpu() for part in read(draw_balanced(labels_N, count, seed))]))
    digest = hashlib.sha256(np.round(images * 255).astype(np.uint8).tobytes()).hexdigest()
    parts = tuple(images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return Calibration(parts, seed, digest)
