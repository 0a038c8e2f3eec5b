"""Worker processes that decode image files ahead of the training, and their end when a process dies."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kdcompress.data.source import Source
from kdcompress.errors import KdcompressError, WorldError

EVALUATION = -1
"""Number of the view that is not augmented."""
_PARENT_CHECK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Task:
    """One batch to decode.

    Args:
        indices: `[B]` int64, positions in the source.
        views: Numbers of the views; `EVALUATION` for the image without augmentation.
        seed: Seed of the augmentation.
    """

    indices: Tensor
    views: tuple[int, ...]
    seed: int


def images_of(sources: Sequence[Source], task: Task) -> list[Tensor]:
    """Gives the images `[B, C, H, W]` uint8 of each view of the task, which has its own source."""
    return [
        source.evaluation_images(task.indices)
        if view == EVALUATION
        else source.training_images(task.indices, view, task.seed)
        for source, view in zip(sources, task.views, strict=True)
    ]


class Workers:
    """Worker processes that decode image files, started at the first use and kept until `close`.

    They are spawned, not forked: a fork copies locks that other threads hold and breaks CUDA. They ignore
    Ctrl-C (whoever started them decides), and end by themselves when their parent is gone, however it went.

    Args:
        sources: The images of each view; sent to each process once.
        count: Number of processes.
        pin: Put the results into pinned memory.
    """

    def __init__(self, sources: Sequence[Source], count: int, pin: bool) -> None:
        self._sources, self._count, self._pin = sources, count, pin
        self._tasks = _Tasks()
        self._loader: DataLoader[Any] | None = None
        self._ahead: tuple[int, Iterator[Any]] | None = None

    def run(self, tasks: Sequence[Task]) -> Iterator[list[Tensor]]:
        """Yields the results of the tasks in their order, decoded ahead.

        Raises:
            WorldError: A worker died.
            KdcompressError: Error that a worker raised.
        """
        if tasks:
            yield from self._take(self._begin(iter(tasks)), len(tasks))

    def run_epoch(
        self, epoch: int, tasks_of: Callable[[int], Sequence[Task]], start: int = 0
    ) -> Iterator[list[Tensor]]:
        """Yields the results of an epoch's tasks; its last results are taken while the next epoch is begun.

        So the first batch of the next epoch is there when this one is over. Another epoch than the next, or
        one from the middle, begins anew.

        Args:
            epoch: Number.
            tasks_of: Returns the tasks of an epoch; called with the next one's number too.
            start: Number of the first task.

        Raises:
            WorldError: A worker died.
            KdcompressError: Error that a worker raised.
        """
        count = len(tasks_of(epoch)) - start
        if count <= 0:
            return
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == epoch and start == 0:
            results = ahead[1]
        else:
            results = self._begin(_endless(epoch, tasks_of, start))
        yield from self._take(results, count)
        self._ahead = epoch + 1, results

    def close(self) -> None:
        """Ends the processes."""
        self._ahead = self._loader = None  # the iterator ends them when nobody holds it any more

    def _begin(self, tasks: Iterator[Task]) -> Iterator[Any]:
        self._ahead, self._tasks.tasks = None, tasks
        with warnings.catch_warnings(), self._dead_worker_as_sentence(), _without_interrupts():
            # More workers than cores are the user's to choose: decoding may wait for a network drive.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            if self._loader is None:
                self._loader = self._started()
            return iter(self._loader)

    def _take(self, results: Iterator[Any], count: int) -> Iterator[list[Tensor]]:
        for _ in range(count):
            with self._dead_worker_as_sentence():
                result = next(results)
            if isinstance(result, KdcompressError):
                raise result
            yield result

    def _started(self) -> DataLoader[Any]:
        return DataLoader(
            _Decoding(self._sources),
            batch_size=None,
            sampler=self._tasks,
            num_workers=self._count,
            collate_fn=_unchanged,
            pin_memory=self._pin,
            worker_init_fn=_start_of_worker,
            multiprocessing_context="spawn",
            # Without its own, each pass would take a number from torch's global generator.
            generator=torch.Generator(),
            prefetch_factor=2,
            persistent_workers=True,
        )

    @contextmanager
    def _dead_worker_as_sentence(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # torch has no exception of its own for this. A worker that dies while its images are handed over
            # shows as a broken connection; what a worker itself raised is our bug.
            message = str(error)
            raised_by_worker = "in DataLoader worker process" in message
            unrelated = isinstance(error, RuntimeError) and not message.startswith("DataLoader worker (pid")
            if raised_by_worker or unrelated:
                raise
            self.close()  # those that are left would wait for ever
            raise WorldError(
                "a process that decodes images died, perhaps for want of memory or shared memory (/dev/shm); "
                "lower data.workers or data.batch_size and run again with --resume"
            ) from None


class _Decoding(Dataset[Any]):
    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources

    def __getitem__(self, task: Task) -> list[Tensor] | KdcompressError:
        try:
            return images_of(self.sources, task)
        except KdcompressError as error:
            return error  # as a value: torch would wrap it into the text of a traceback


class _Tasks(Sampler[Task]):
    def __init__(self) -> None:
        self.tasks: Iterator[Task] = iter(())

    def __iter__(self) -> Iterator[Task]:
        return self.tasks


def _endless(epoch: int, tasks_of: Callable[[int], Sequence[Task]], start: int) -> Iterator[Task]:
    yield from tasks_of(epoch)[start:]
    while True:
        epoch += 1
        yield from tasks_of(epoch)


def _unchanged(result: Any) -> Any:
    return result


def _start_of_worker(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    # torch looks for the parent only between two tasks; a thread also ends a worker that hangs in a read.
    while os.getppid() == parent:
        threading.Event().wait(_PARENT_CHECK_SECONDS)
    os._exit(1)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Starts processes that Ctrl-C never reaches, and whose death is told only to who waits for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Started first, because its start unblocks SIGINT again.
    resource_tracker.ensure_running()
    on_child = signal.getsignal(signal.SIGCHLD)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by what is started here
    try:
        yield
    finally:
        # torch's handler raises wherever the main thread happens to be when a worker dies. Without it the
        # next wait for a result notices, within seconds.
        if on_child is not None and signal.getsignal(signal.SIGCHLD) is not on_child:
            signal.signal(signal.SIGCHLD, on_child)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
