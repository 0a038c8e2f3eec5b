"""Rows of a whole split: kept in memory, or in a mapped file where they are many, and read in blocks.

The logits of 50,000 images for 100,000 classes take 20 GB, and each copy of them as much again.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from typing import IO

import numpy as np
import torch
from torch import Tensor

MEMORY_BYTES = 1 << 30
"""Most bytes of rows that are kept in memory."""
BLOCK_BYTES = 1 << 26
"""Most bytes of rows that are computed with at once."""


class Rows:
    """Collects rows of one shape and type.

    Beyond `MEMORY_BYTES` all of them lie in a temporary file without a name, in the folder that TMPDIR names,
    until nothing reads them any more.
    """

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._bytes = self._count = 0
        self._file: IO[bytes] | None = None

    def add(self, rows: Tensor) -> None:
        """Adds rows `[B, ...]`.

        Raises:
            OSError: The file cannot be written, because the disk is full for instance.
        """
        self._parts.append(rows.detach().cpu().contiguous())
        self._count += len(rows)
        self._bytes += rows.numel() * rows.element_size()
        if self._file is None and self._bytes > MEMORY_BYTES:
            self._file = tempfile.TemporaryFile(prefix="kdcompress-")  # noqa: SIM115 - as long as this object
            weakref.finalize(self, self._file.close)  # a map of it stays
        if self._file is not None:
            for part in self._parts:
                self._file.write(part.numpy().data)
            self._parts = [self._parts[-1][:0]]  # keeps shape and type

    def tensor(self) -> Tensor:
        """Returns all rows `[N, ...]`, in the order of `add`; `[0]` if there are none."""
        if self._file is None:
            self._parts = [torch.cat(self._parts)] if self._parts else []
            return self._parts[0] if self._parts else torch.empty(0)
        self._file.flush()
        like = self._parts[0].numpy()
        # Writable for torch's sake: what is written into it stays in memory.
        shape = (self._count, *like.shape[1:])
        return torch.from_numpy(np.memmap(self._file, like.dtype, mode="c", shape=shape))


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields the same rows of several tensors, at most `BLOCK_BYTES` of the first one at a time.

    Args:
        tensors: `[N, ...]` each.
    """
    first = tensors[0]
    if not len(first):
        return
    size = max(1, BLOCK_BYTES // max(1, first[0].numel() * first.element_size()))
    for start in range(0, len(first), size):
        yield tuple(tensor[start : start + size] for tensor in tensors)


def mean_absolute(rows: Tensor) -> float:
    """Computes the mean of the absolute values of all numbers; NaN if there are none."""
    total = sum(block.double().abs().sum().item() for (block,) in blocks(rows))
    return total / rows.numel() if rows.numel() else float("nan")


def largest_absolute(rows: Tensor) -> float:
    """Computes the largest absolute value; NaN if any number is."""
    largest = torch.stack([block.abs().max() for (block,) in blocks(rows)])
    return float(largest.max())
