"""Batches of fixed composition, where the images of a training set are not all alike.

Images with a label among many without, or generated ones beside real ones: drawn as they come, a batch would
hold two of the few, or none. So each kind is a pool with a share of every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcompress.data.random_bits import permutation
from kdcompress.errors import UserError

LABELLED, UNLABELLED, REAL, EXTRA = "labelled", "unlabelled", "real", "generated"
_STREAM = 1 << 40
"""Epochs of the shuffled order count from 0; the passes through each pool have numbers of their own."""


@dataclass(frozen=True, eq=False)
class Pool:
    """One kind of images.

    Args:
        name: For messages and the manifest.
        indices: `[n]` int64, positions in the training set; n ≥ 1.
        share: Of every batch; the shares of all pools add up to 1.
    """

    name: str
    indices: Tensor
    share: float


class PooledOrder:
    """The order of a training set whose batches hold a fixed number of each pool.

    An epoch is one pass through the first pool, so that ramps and schedules in epochs keep their meaning
    however many images the other pools have. Those are gone through in shuffled passes of their own, across
    the borders of epochs. Order and composition depend on (seed, epoch) alone.

    Args:
        pools: At least one.
        batch_size: Global.
        seed: The run's.

    Attributes:
        counts: Rows of each pool in a batch.
        steps: Batches of an epoch.

    Raises:
        UserError: A batch is too small to hold one image of each pool.
    """

    def __init__(self, pools: Sequence[Pool], *, batch_size: int, seed: int) -> None:
        self._pools, self._seed = tuple(pools), seed
        self.counts = counted(pools, batch_size)
        self.steps = max(1, len(self._pools[0].indices) // self.counts[0])
        # Evenly mixed, so that every process's part of the batch has nearly the same composition.
        places = [(row + 0.5) / n for n in self.counts for row in range(n)]
        self._pool_of_row = torch.tensor(
            [number for number, n in enumerate(self.counts) for _ in range(n)], dtype=torch.int64
        )[torch.tensor(places).argsort(stable=True)]

    def __call__(self, epoch: int) -> Tensor:
        """`[steps · batch_size]` int64, the sample indices of an epoch."""
        order = torch.empty(self.steps, len(self._pool_of_row), dtype=torch.int64)
        for number, (pool, count) in enumerate(zip(self._pools, self.counts, strict=True)):
            rows = self._stretch(number, pool, epoch * self.steps * count, self.steps * count)
            order[:, self._pool_of_row == number] = rows.reshape(self.steps, count)
        return order.flatten()

    def _stretch(self, number: int, pool: Pool, start: int, length: int) -> Tensor:
        size = len(pool.indices)
        passes = range(start // size, (start + length - 1) // size + 1)
        stream = (number + 1) * _STREAM
        rows = torch.cat([pool.indices[permutation(self._seed, stream + each, size)] for each in passes])
        first = start - passes.start * size
        return rows[first : first + length]


def steps_per_epoch(pools: Sequence[Pool], images: int, batch_size: int) -> int:
    """Batches of an epoch: one pass through the first pool, or through all images where there are no pools.

    Raises:
        UserError: A batch is too small to hold one image of each pool.
    """
    batch_size = min(batch_size, images)
    return PooledOrder(pools, batch_size=batch_size, seed=0).steps if pools else images // batch_size


def counted(pools: Sequence[Pool], batch_size: int) -> list[int]:
    """How many images of each pool a batch holds.

    Raises:
        UserError: None of one of them.
    """
    counts = rows_of_pools([pool.share for pool in pools], batch_size)
    if 0 in counts:
        name = pools[counts.index(0)].name
        raise UserError(f"data.batch_size: {batch_size} is too small to hold one {name} image per batch")
    return counts


def rows_of_pools(shares: Sequence[float], batch_size: int) -> list[int]:
    """How many rows of a batch each share is: largest remainders, the first of equals.

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
