"""Collecting the rows of all processes, for losses that are no mean over rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Returns the number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Returns the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def row_share(rows: int | Tensor, like: Tensor) -> Tensor | float:
    """Returns the factor that turns a mean over this process's rows into its share of the mean over all rows.

    Args:
        rows: Number of this process's rows that count.
        like: A tensor on the device of the result.

    Returns:
        rows · processes / rows of all processes; 1 in a run of one process.
    """
    if world_size() == 1:
        return 1.0
    ours = torch.as_tensor(rows, dtype=torch.float32, device=like.device)
    total = ours.clone()
    dist.all_reduce(total)
    return ours * dist.get_world_size() / total.clamp(min=1)


def gather_rows(rows: Tensor) -> Tensor:
    """Collects the rows of all processes.

    Args:
        rows: `[B, ...]`, equally many in every process.

    Returns:
        `[B · processes, ...]` by rank, with gradients to every process's rows; `rows` itself if there is one
        process. A loss of them is the same number in every process, and its gradients, averaged over the
        processes, are those of one process that holds all rows. Differentiable once: a second derivative
        would miss the other processes' share, so torch raises a RuntimeError when one is asked for. A step
        with an inner gradient computes on gathered rows instead, so that no collective lies inside its graph.
    """
    if world_size() == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def own_rows(gathered: Tensor) -> Tensor:
    """Returns this process's rows of what `gather_rows` returned, or of a result with the same rows."""
    return gathered.chunk(world_size())[process_rank()]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process's loss depends on these rows; the mean over processes that follows undoes the sum.
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
