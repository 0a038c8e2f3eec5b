"""One row per training image that a method writes in one epoch and reads in the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from kdcompress.methods.gather import gather_rows


class SampleMemory(nn.Module):
    """Stores a row for every training image, equal in all processes; part of the method's checkpoint.

    Args:
        samples: N, number of training images.
        width: K, numbers per row.
        dtype: Type of the stored numbers; rows are rounded to it when written.
        device: "cpu" keeps the rows in CPU memory whatever device the method moves to: for memories that are
            large beside the GPU. Each read and write then waits for the device. "method": the rows move with
            the method.

    Attributes:
        on_cpu: True if the rows stay in CPU memory.
        rows: `[N, K]`, 0 until written.
    """

    rows: Tensor

    def __init__(
        self,
        samples: int,
        width: int,
        *,
        dtype: torch.dtype = torch.float16,
        device: Literal["cpu", "method"] = "cpu",
    ) -> None:
        super().__init__()
        self.on_cpu = device == "cpu"
        self.register_buffer("rows", torch.zeros(samples, width, dtype=dtype))

    @property
    def bytes(self) -> int:
        """Size of the rows, in memory and in each checkpoint."""
        return self.rows.numel() * self.rows.element_size()

    def read(self, indices_B: Tensor) -> Tensor:
        """Returns the rows `[B, K]` of images, on the device of the indices and in the stored type.

        Args:
            indices_B: `[B]` int64 positions in the training set.
        """
        return self.rows[indices_B.to(self.rows.device)].to(indices_B.device)

    @torch.no_grad()
    def write(self, indices_B: Tensor, rows_BK: Tensor) -> None:
        """Stores the rows that all processes give; every process must call it, with as many rows.

        Args:
            indices_B: `[B]` int64 positions in the training set.
            rows_BK: `[B, K]` on the same device.
        """
        indices_A, rows_AK = gather_rows(indices_B), gather_rows(rows_BK)
        self.rows[indices_A.to(self.rows.device)] = rows_AK.to(self.rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self.on_cpu:
            return self
        result: Any = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        assert result is self
        return self
