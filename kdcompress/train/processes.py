"""The processes of one run: one, or as many as `torchrun` started.

Each process computes on its rows of every global batch; DistributedDataParallel in `Minimiser` averages the
gradients. Batch norm normalises by each process's own rows, and the first process's statistics are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from kdcompress.errors import UserError, WorldError

PATIENCE = timedelta(hours=6)
"""How long the others wait for the first process, which alone evaluates, exports and times. One that died is
noticed at once, by its connection."""
TIME_TO_MEET = timedelta(minutes=5)
"""Until all processes have started."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all of them. Whatever talks to the others must be reached by all of them.

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
        with _talking():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, by rank."""
        values = [value] * self.world
        if self.world > 1:
            with _talking():
                dist.all_gather_object(values, value)
        return values

    def largest(self, value: float) -> float:
        """The largest value of all processes."""
        if self.world == 1:
            return value
        seen = torch.tensor([value])  # on the CPU, so that no device has to be waited for
        with _talking():
            dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return float(seen.item())

    def mean(self, values: Tensor) -> Tensor:
        """The elementwise mean over all processes; a NaN anywhere is a NaN everywhere."""
        if self.world == 1:
            return values
        total = values.clone()
        with _talking():
            dist.all_reduce(total)
        return total / self.world

    def share(self, modules: Iterable[nn.Module], *, parameters: bool = False) -> None:
        """Gives every process the first one's buffers (batch-norm statistics differ from rank to rank).

        Args:
            modules: The same ones in all processes.
            parameters: Whether the parameters too.
        """
        if self.world == 1:
            return
        with _talking():
            for module in modules:
                for tensor in [*module.buffers(), *(module.parameters() if parameters else ())]:
                    dist.broadcast(tensor.detach(), src=0)

    def wait(self) -> None:
        """Until all processes are here."""
        self.largest(0.0)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes first: what it downloads or caches is there for the others."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


def join(device: str) -> Processes:
    """Joins the processes that `torchrun` started, or stands alone.

    Args:
        device: auto, cpu or cuda.

    Raises:
        UserError: cuda without a CUDA device, more processes than devices, or processes that do not know of
            each other.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError("--device cuda: torch sees no CUDA device here; take --device cpu")
    kind = "cuda" if cuda and device != "cpu" else "cpu"
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if world > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {world} and MASTER_ADDR is not set; start several processes with "
            f"torchrun --nproc_per_node {world} -m kdcompress …, or unset WORLD_SIZE"
        )
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"--nproc_per_node: {local + 1} processes or more; torch sees {torch.cuda.device_count()} "
                "CUDA devices here; start one process per device, or take --device cpu"
            )
        torch.cuda.set_device(local)
    if world > 1 and not dist.is_initialized():
        _meet("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    place = torch.device(kind, local) if kind == "cuda" else torch.device("cpu")
    return Processes(int(os.environ.get("RANK", "0")), world, place)


def _meet(backend: str) -> None:
    try:
        # Whoever is not here within minutes never comes; the patience is for what is done together.
        store, rank, world = next(rendezvous("env://", timeout=TIME_TO_MEET))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    except RuntimeError as error:
        reason = _reason(error)
        address = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}"
        raise WorldError(f"the processes did not find each other at {address} ({reason})") from error


def leave() -> None:
    """Ends the process group, if there is one; whoever waits in it hears of it."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _talking() -> Iterator[None]:
    """Says in one sentence that the other processes are gone (torch's errors for it are RuntimeErrors)."""
    try:
        yield
    except RuntimeError as error:
        reason = _reason(error)
        raise WorldError(
            f"another process of this run has ended, and its own message says why ({reason}); go on with "
            "--resume when that is mended"
        ) from error


def _reason(error: RuntimeError) -> str:
    """The first sentence of an error of torch's, without the place in its source that goes before it."""
    return str(error).strip().split("\n", 1)[0].split("] ", 1)[-1].split(". ", 1)[0]
