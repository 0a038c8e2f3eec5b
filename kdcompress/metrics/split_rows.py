"""Rows of a whole split: kept in memory, or in a mapped file where they are many, and read in blocks.

The logits of 50,000 images for 100,000 classes take 20 GB, and each copy of them as much again.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from kdcompress.atomic import translated

MEMORY_BYTES = 1 << 30
"""Most bytes of rows that are kept in memory."""
BLOCK_BYTES = 1 << 26
"""Most bytes of rows that are computed with at once."""


class SplitRows:
    """Collects rows of one shape and type; bfloat16 becomes float32.

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
            WorldError: The disk is full or fails.
        """
        rows = rows.detach().cpu().contiguous()
        rows = rows.float() if rows.dtype == torch.bfloat16 else rows  # NumPy has no such type
        like = self._parts[0] if self._parts else rows
        assert (rows.dtype, rows.shape[1:]) == (like.dtype, like.shape[1:]), "rows of another shape or type"
        self._parts.append(rows)
        self._count += len(rows)
        self._bytes += rows.numel() * rows.element_size()
        if self._file is not None or self._bytes > MEMORY_BYTES:
            with translated(Path(tempfile.gettempdir())):
                self._write()

    def _write(self) -> None:
        """Moves what is in memory to the end of the file."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="kdcompress-")  # noqa: SIM115 - as long as this object
            weakref.finalize(self, self._file.close)  # a map of it stays
        for part in self._parts:
            self._file.write(part.numpy().data)
        self._file.flush()
        self._parts = [self._parts[-1][:0]]  # keeps shape and type

    def tensor(self) -> Tensor:
        """Returns all rows `[N, ...]`, in the order of `add`; `[0]` if there are none."""
        if self._file is None:
            self._parts = self._parts if len(self._parts) < 2 else [torch.cat(self._parts)]
            return self._parts[0] if self._parts else torch.empty(0)
        like = self._parts[0].numpy()
        # Writable for torch's sake: what is written into it stays in memory.
        shape = (self._count, *like.shape[1:])
        return torch.from_numpy(np.memmap(self._file, like.dtype, mode="c", shape=shape))


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields the same rows of several tensors, at most `BLOCK_BYTES` of the first one at a time.

    Args:
        tensors: `[N, ...]` each.
    """
    size = block_rows(tensors[0])
    for start in range(0, len(tensors[0]), size):
        yield tuple(tensor[start : start + size] for tensor in tensors)


def block_rows(rows: Tensor) -> int:
    """Returns the number of rows that take `BLOCK_BYTES`, at least 1."""
    width = rows.shape[1:].numel() * rows.element_size()
    return max(1, BLOCK_BYTES // max(1, width))


def mean_absolute(rows: Tensor) -> float:
    """Computes the mean of the absolute values of all numbers; NaN if there are none."""
    total = sum(block.double().abs().sum().item() for (block,) in blocks(rows))
    return total / rows.numel() if rows.numel() else float("nan")


def largest_absolute(rows: Tensor) -> float:
    """Computes the largest absolute value; NaN if any number is, or if there are none."""
    each = [block.abs().max() for (block,) in blocks(rows)]
    return float(torch.stack(each).max()) if each else float("nan")
