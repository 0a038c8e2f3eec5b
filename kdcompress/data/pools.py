"""Kinds of training images (pools) that have a fixed share of every batch.

Images with a label among many without, or generated ones beside real ones: in a shuffled order a batch would
hold two of the few, or none. So each kind is a pool with a share of every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

LABELLED, UNLABELLED, REAL, EXTRA = "labelled", "unlabelled", "real", "generated"


@dataclass(frozen=True, eq=False)
class Pool:
    """One kind of images.

    Args:
        name: For messages and the manifest.
        indices: `[n]` int64, positions in the training set; n ≥ 1.
        share: Share of every batch; the shares of all pools add up to 1.
    """

    name: str
    indices: Tensor
    share: float


def rows_of_pools(shares: Sequence[float], batch_size: int) -> list[int]:
    """Distributes the rows of a batch by shares: largest remainders, the first of equals.

    Args:
        shares: They add up to 1.
        batch_size: The sum of the result.
    """
    exact = [share * batch_size for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: batch_size - sum(counts)]:
        counts[i] += 1
    return counts
