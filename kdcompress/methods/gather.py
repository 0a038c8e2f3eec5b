"""Rows of all processes, for the losses that are no mean over rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def row_share(rows: int | Tensor, like: Tensor) -> Tensor | float:
    """By what a mean over this process's rows is multiplied so that the processes' mean is one over all rows.

    Args:
        rows: How many of this process's rows count.
        like: Says the device.

    Returns:
        rows · processes / rows of all processes; 1 in a run of one process.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return 1.0
    ours = torch.as_tensor(rows, dtype=torch.float32, device=like.device)
    total = ours.clone()
    dist.all_reduce(total)
    return ours * dist.get_world_size() / total.clamp(min=1)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows of all processes.

    Args:
        rows: `[B, ...]`, as many in every process.

    Returns:
        `[B · processes, ...]` by rank, with gradients to every process's rows; `rows` itself where there is
        one process. A loss of them is the same number in every process, and its gradients, averaged over the
        processes, are those of one process that holds all rows.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process's loss depends on these rows; the mean over processes that follows undoes the sum.
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
