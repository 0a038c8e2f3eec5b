"""The processes of one run: one, or as many as `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from kdcompress.errors import UserError


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all of them.

    Args:
        rank: 0 is the one that writes.
        world: How many there are.
        device: Where this one computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes, evaluates and reports."""
        return self.rank == 0

    def agree(self, value: Any) -> Any:
        """The first process's value, on all of them."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def largest(self, value: float) -> float:
        """The largest value of all processes."""
        if self.world == 1:
            return value
        seen = torch.tensor([value], device=self.device)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return float(seen.item())

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Gives every process the first one's buffers (batch-norm statistics differ from rank to rank)."""
        if self.world == 1:
            return
        for module in modules:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


def join(device: str) -> Processes:
    """Joins the processes that `torchrun` started, or stands alone.

    Args:
        device: auto, cpu or cuda.

    Raises:
        UserError: cuda without a CUDA device.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError("--device cuda: torch sees no CUDA device here; take --device cpu")
    kind = "cuda" if cuda and device != "cpu" else "cpu"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device(kind, local) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return Processes(int(os.environ.get("RANK", "0")), world, place)


def leave() -> None:
    """Ends the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
