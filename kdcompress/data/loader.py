"""Batches for training and for evaluation: the same for any number of workers, processes and resumes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdcompress.data.batch import Batch, Replay, View
from kdcompress.data.joined import JoinedSource
from kdcompress.data.orders import BatchOrder, ShuffledOrder
from kdcompress.data.prefetch import moved, prefetched
from kdcompress.data.source import MATERIALISE_BYTES, FolderSource, MemorySource, Source
from kdcompress.data.workers import EVALUATION, Task, Workers, images_of
from kdcompress.errors import UserError

RESIDENT_BYTES = 1 << 31
"""An in-memory set of up to 2 GiB is copied to the accelerator whole."""
KEPT_BYTES = 1 << 31
"""The decoded pixels of a split that is not augmented are kept up to 2 GiB, and are copied to the accelerator
up to `MATERIALISE_BYTES`."""


class TrainingLoader:
    """The training set, epoch by epoch, in an order that depends on (seed, epoch) alone.

    The last batch of an epoch is left out if it is incomplete; a set smaller than one batch is one batch.

    Attributes:
        steps: Batches per epoch.

    Args:
        source: The training images.
        batch_size: Global, over all processes together.
        views: Augmentations of each image a batch holds (V).
        seed: The run's seed.
        augment: Name of a preset (`augment.PRESETS`), or one name per view. `weak` is the source's own
            preset, `strong` its crop with strong colours.
        device: Device of the batches.
        rank: Number of this process, which gets rows [rank · b, (rank + 1) · b) of each global batch,
            b = batch_size / world.
        world: Number of processes.
        workers: Processes that decode image files; an in-memory set uses none.
        order: The samples of every batch, made by `batch_order` with the same batch size; None: shuffled.
        replay: Views that repeat, as a teacher cache needs them; None: every epoch has new ones.

    Raises:
        UserError: The batch does not divide evenly over the processes.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        views: int = 1,
        seed: int,
        augment: str | tuple[str, ...],
        device: torch.device | str,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        order: BatchOrder | None = None,
        replay: Replay | None = None,
    ) -> None:
        assert 0 <= rank < world, (rank, world)
        presets = (augment,) * views if isinstance(augment, str) else augment
        assert 1 <= len(presets) == views, (presets, views)
        if len(source) == 0:
            raise UserError("data: there are no training images")
        batch_size = min(batch_size, len(source))
        if batch_size % world:
            raise UserError(
                f"data.batch_size: a batch of {batch_size} does not divide evenly over {world} processes; "
                f"choose a multiple of {world}"
            )
        self.device = torch.device(device)
        self.source = _near(source, self.device)
        self._views = tuple(self.source.with_augment(preset) for preset in presets)
        self.batch_size, self.views, self.seed = batch_size, views, seed
        self.rank, self.world = rank, world
        self._replay = replay
        self._order = order or ShuffledOrder(len(source), batch_size=batch_size, seed=seed)
        self.steps = self._order.steps
        self._workers = _workers(self._views, workers, self.device)
        self._kept_tasks: dict[int, list[Task]] = {}

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This process's batches of an epoch.

        Args:
            epoch: Counted from 0.
            start_step: Number of the first batch given; those before it are not read.

        Yields:
            Batches of `batch_size / world` samples; view k has the number epoch × V + k, or of views that
            repeat that number modulo their count.

        Raises:
            WorldError: A worker process died.
            DataError: An image file cannot be read any more.
        """
        yield from prefetched(self._batches(epoch, start_step), self.device)

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        tasks = self._tasks(epoch)[start_step:]
        workers = self._workers
        results = (
            (images_of(self._views, task) for task in tasks)
            if workers is None
            else workers.run_epoch(epoch, self._tasks, start_step)
        )
        for task, images in zip(tasks, results, strict=True):
            ids = None if self._replay is None else self.source.ids[task.indices]
            yield _batch(self.source, task.indices, images, task.views, self.device, ids)

    def _tasks(self, epoch: int) -> list[Task]:
        """Returns this process's tasks of an epoch; those of the present and the next one are kept."""
        if epoch not in self._kept_tasks:
            kept = {number: tasks for number, tasks in self._kept_tasks.items() if number == epoch - 1}
            self._kept_tasks = {**kept, epoch: self._make_tasks(epoch)}
        return self._kept_tasks[epoch]

    def _make_tasks(self, epoch: int) -> list[Task]:
        order = self._order(epoch)
        assert len(order) == self.steps * self.batch_size, (len(order), self.steps, self.batch_size)
        share = self.batch_size // self.world
        starts = [step * self.batch_size + self.rank * share for step in range(self.steps)]
        numbers, seed = tuple(range(epoch * self.views, (epoch + 1) * self.views)), self.seed
        if self._replay is not None:
            numbers, seed = tuple(n % self._replay.views for n in numbers), self._replay.seed
        return [Task(order[start : start + share], numbers, seed) for start in starts]

    def close(self) -> None:
        """Ends the worker processes; a later `epoch` starts new ones."""
        if self._workers is not None:
            self._workers.close()


class EvaluationLoader:
    """All images of a split in their order, not augmented: one view with the number -1.

    Image files are decoded once, if their pixels take up to `KEPT_BYTES`: the first complete iteration keeps
    them.

    Args:
        source: The images.
        batch_size: The last batch may be smaller.
        device: Device of the batches.
        workers: Processes that decode image files; an in-memory set uses none.
        rank: Number of this process among those that share the split; the first one always has a batch.
        world: Number of these processes. Each gets whole batches, the same for any number of processes.

    Attributes:
        labels: `[N]` int64 labels of the whole split; -1 = none.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int = 256,
        device: torch.device | str,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        assert batch_size >= 1, batch_size
        assert 0 <= rank < world, (rank, world)
        self.labels = source.labels
        if world > 1:
            batches = math.ceil(len(source) / batch_size)
            first, end = (-(-number * batches // world) * batch_size for number in (rank, rank + 1))
            source = source.subset(torch.arange(min(first, len(source)), min(end, len(source))))
        self.device = torch.device(device)
        self.source = _near(source, self.device)
        self.batch_size = batch_size
        self._workers = _workers((self.source,), workers, self.device)

    def __len__(self) -> int:
        return math.ceil(len(self.source) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        parts = torch.split(torch.arange(len(self.source)), self.batch_size) if len(self.source) else ()
        tasks = [Task(part, (EVALUATION,), 0) for part in parts]
        pixels = self._room_for_pixels()
        for task, images in zip(tasks, _results((self.source,), self._workers, tasks), strict=True):
            if pixels is not None:
                pixels[task.indices[0] : task.indices[-1] + 1] = images[0]
            yield _batch(self.source, task.indices, images, (EVALUATION,), self.device)
        if pixels is not None:
            self.close()
            self._workers = None
            decoded = MemorySource(pixels, self.source.labels)
            self.source = decoded if decoded.nbytes > MATERIALISE_BYTES else _near(decoded, self.device)

    def _room_for_pixels(self) -> Tensor | None:
        """Returns memory for the decoded pixels of image files; None: they are in memory, or are too many."""
        if not isinstance(self.source, FolderSource) or not 0 < self._nbytes() <= KEPT_BYTES:
            return None
        shape = (len(self.source), self.source.channels, *self.source.image_size)
        return torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)

    def _nbytes(self) -> int:
        return len(self.source) * self.source.channels * math.prod(self.source.image_size)

    def close(self) -> None:
        """Ends the worker processes; a later iteration starts new ones."""
        if self._workers is not None:
            self._workers.close()


def on_device(images: Tensor, device: torch.device) -> Tensor:
    """Converts images to the input of networks.

    Args:
        images: `[B, C, H, W]` uint8.
        device: Target device; CUDA is reached from pinned memory and without waiting.

    Returns:
        The same in float32 in [0, 1], channels last.
    """
    if device.type == "cuda" and images.device.type == "cpu":
        # uint8 travels: a quarter of the bytes. Images of files come channels last, and pinned if workers
        # decoded them; then neither call copies.
        images = images.contiguous(memory_format=torch.channels_last)
        images = (images if images.is_pinned() else images.pin_memory()).to(device, non_blocking=True)
    images = images.to(device)
    return images.to(torch.float32, memory_format=torch.channels_last).div_(255)


def _near(source: Source, device: torch.device) -> Source:
    if device.type == "cpu" or not isinstance(source, MemorySource | JoinedSource):
        return source
    if isinstance(source, JoinedSource) and not source.in_memory:
        return source
    return source.to(device) if source.nbytes <= RESIDENT_BYTES else source


def _workers(sources: Sequence[Source], count: int, device: torch.device) -> Workers | None:
    source = sources[0]
    in_memory = source.in_memory if isinstance(source, JoinedSource) else isinstance(source, MemorySource)
    if count == 0 or in_memory:
        return None
    return Workers(sources, count, pin=device.type == "cuda")


def _results(
    sources: Sequence[Source], workers: Workers | None, tasks: Sequence[Task]
) -> Iterator[list[Tensor]]:
    if workers is not None:
        return workers.run(tasks)
    return (images_of(sources, task) for task in tasks)


def _batch(
    source: Source,
    indices: Tensor,
    images: Sequence[Tensor],
    numbers: Sequence[int],
    device: torch.device,
    ids: Tensor | None = None,
) -> Batch:
    labels, here = moved(source.labels[indices], device), moved(indices, device)
    views = (
        View(on_device(each, device), here, number, ids) for each, number in zip(images, numbers, strict=True)
    )
    return Batch(tuple(views), labels, here)
