"""Communication between the processes of one run: one, or as many as `torchrun` started.

Each process computes on its rows of every global batch; `Minimiser` averages the gradients. Batch norm
normalises by each process's own rows; its running statistics are averaged over the processes at the end of
each epoch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from kdcompress.errors import UserError, WorldError

COLLECTIVE_TIMEOUT = timedelta(hours=6)
"""Time that the others wait for the first process, which alone exports and measures. A process
that died is noticed at once, by its connection."""
START_TIMEOUT = timedelta(minutes=5)
"""Time until all processes must have started."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all of the run. Every method that communicates must be called by all processes.

    Args:
        rank: 0 writes the files.
        world: Number of processes.
        device: This process computes on it.
        local_world: Number of those processes that run on this machine; 0: all of them.
    """

    rank: int
    world: int
    device: torch.device
    local_world: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "local_world", self.local_world or self.world)

    @property
    def first(self) -> bool:
        """True in the process that writes and reports."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Returns the first process's value in all processes."""
        if self.world == 1:
            return value
        box = [value]
        with _translate_collective_errors():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Returns the value of each process, by rank."""
        values = [value] * self.world
        if self.world > 1:
            with _translate_collective_errors():
                dist.all_gather_object(values, value)
        return values

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Collects the rows of all processes in the first one.

        Args:
            rows: `[B, ...]` on the CPU; B may differ, and a process without rows gives any empty tensor.

        Returns:
            The first process: all rows, by rank. The others: their own.
        """
        if self.world == 1:
            return rows
        own = self.gather((rows.shape, rows.dtype) if len(rows) else None)
        known = [entry for entry in own if entry is not None]
        if not known:
            return rows
        counts = [0 if entry is None else entry[0][0] for entry in own]
        shape, dtype = known[0]
        padded = torch.zeros(max(counts), *shape[1:], dtype=dtype)
        if len(rows):
            padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts] if self.first else None
        with _translate_collective_errors():
            dist.gather(padded, parts, dst=0)
        return rows if parts is None else torch.cat([p[:n] for p, n in zip(parts, counts, strict=True)])

    def all_reduce_max(self, value: float) -> float:
        """Returns the largest value of all processes."""
        return self.all_reduce_maxima([value])[0]

    def all_reduce_maxima(self, values: Sequence[float]) -> list[float]:
        """Returns the largest of each of several values over all processes, in one message."""
        if self.world == 1:
            return list(values)
        seen = torch.tensor(values)  # on the CPU, so that no device has to be waited for
        with _translate_collective_errors():
            dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return list(map(float, seen.tolist()))

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Returns the elementwise mean over all processes; a NaN anywhere is a NaN everywhere."""
        if self.world == 1:
            return values
        total = values.clone()
        with _translate_collective_errors():
            dist.all_reduce(total)
        return total / self.world

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Averages the gradients of parameters over the processes, in one message per number format.

        A parameter without a gradient counts as zero where another process has one, and stays without one
        where no process has: an optimiser then leaves it alone, as in a run of one process.

        Args:
            parameters: The same ones in the same order in all processes.
        """
        if self.world == 1:
            return
        by_type: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
        for parameter in parameters:
            by_type.setdefault((parameter.device, parameter.dtype), []).append(parameter)
        for (device, dtype), group in by_type.items():
            present = torch.tensor([p.grad is not None for p in group], dtype=dtype)
            parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in group]
            with _translate_collective_errors():
                if device.type == "cpu":
                    flat = torch.cat([*parts, present])
                    dist.all_reduce(flat)
                    used = flat[-len(group) :].tolist()
                else:  # a message of its own between the CPUs, so that no device has to be waited for
                    flat = torch.cat(parts)
                    dist.all_reduce(flat)
                    present = present.float()
                    dist.all_reduce(present)
                    used = present.tolist()
            flat /= self.world
            start = 0
            for parameter, count in zip(group, used, strict=True):
                size = parameter.numel()
                if count:
                    mean = flat[start : start + size].view_as(parameter)
                    if parameter.grad is None:
                        parameter.grad = mean.clone()
                    else:
                        parameter.grad.copy_(mean)
                start += size

    def broadcast_buffers(self, modules: Iterable[nn.Module], *, parameters: bool = False) -> None:
        """Copies the first process's buffers, except the batch-norm statistics, to all processes.

        Args:
            modules: The same ones in all processes.
            parameters: True copies the parameters and the batch-norm statistics as well.
        """
        if self.world == 1:
            return
        own = set() if parameters else {id(t) for module in modules for t in batch_norm_statistics(module)}
        with _translate_collective_errors():
            for module in modules:
                for tensor in [*module.buffers(), *(module.parameters() if parameters else ())]:
                    if id(tensor) not in own:
                        dist.broadcast(tensor.detach(), src=0)

    def average_statistics(self, modules: Iterable[nn.Module]) -> None:
        """Averages the running statistics of the batch norms in training mode over the processes.

        Args:
            modules: The same ones in all processes.
        """
        if self.world == 1:
            return
        statistics = [t for module in modules for t in batch_norm_statistics(module, training_only=True)]
        statistics = [t for t in statistics if t.is_floating_point()]
        if not statistics:
            return
        flat = torch.cat([t.reshape(-1) for t in statistics])
        with _translate_collective_errors():
            dist.all_reduce(flat)
        flat /= self.world
        for tensor, mean in zip(statistics, torch.split(flat, [t.numel() for t in statistics]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def barrier(self) -> None:
        """Waits until all processes are here."""
        self.all_reduce_max(0.0)

    @contextmanager
    def first_process_first(self) -> Iterator[None]:
        """Lets the first process run the block before the others, which then find its downloads."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()


def batch_norm_statistics(module: nn.Module, *, training_only: bool = False) -> list[Tensor]:
    """Lists the buffers of all batch norms inside a module.

    Args:
        module: Searched with all its children.
        training_only: True leaves out batch norms in evaluation mode, whose statistics are fixed.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [t for norm in norms if norm.training or not training_only for t in norm.buffers(recurse=False)]


def join(device: str) -> Processes:
    """Joins the processes that `torchrun` started, or forms a run of one.

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
    world, local = number_of("WORLD_SIZE", 1), number_of("LOCAL_RANK", 0)
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
        _connect("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    place = torch.device(kind, local) if kind == "cuda" else torch.device("cpu")
    local_world = min(world, number_of("LOCAL_WORLD_SIZE", 0))
    return Processes(number_of("RANK", 0), world, place, local_world)


def number_of(name: str, default: int) -> int:
    """Returns the number in an environment variable of torchrun.

    Raises:
        UserError: It is something else.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(
            f"{name}: expected a number from torchrun or the scheduler, got {text[:40]!r}; unset it"
        )
    return int(text)


def _connect(backend: str) -> None:
    try:
        # Processes that have not started within minutes never will; collectives may wait much longer.
        store, rank, world = next(rendezvous("env://", timeout=START_TIMEOUT))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT)
    except RuntimeError as error:
        reason = _reason(error)
        address = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}"
        raise WorldError(
            f"the processes did not find each other at {address} ({reason}); start all of them within 5 "
            "minutes, with the same MASTER_ADDR and MASTER_PORT"
        ) from error


def leave() -> None:
    """Ends the process group, if there is one; processes that wait in it get an error."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _translate_collective_errors() -> Iterator[None]:
    """Turns torch's RuntimeErrors for lost processes into one sentence."""
    try:
        yield
    except RuntimeError as error:
        reason = _reason(error)
        raise WorldError(
            f"another process of this run has ended, and its own message says why ({reason}); go on with "
            "--resume once that is fixed"
        ) from error


def _reason(error: RuntimeError) -> str:
    """Returns the first sentence of a torch error, without the source position before it."""
    return str(error).strip().split("\n", 1)[0].split("] ", 1)[-1].split(". ", 1)[0]
