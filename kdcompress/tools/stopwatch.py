"""Takes the times of a training's steps, of its epochs' ends, and of a teacher's passes, for `plan`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from kdcompress.networks.activations import LOGITS, Activations, Want
from kdcompress.networks.teacher import Teacher
from kdcompress.progress import Bar, Progress

WARM_UP = 3
"""Steps before the measured ones: the first ones load libraries and start worker processes."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Times of one training.

    Args:
        step: Mean seconds of an optimiser step, data loading included.
        epoch_end: Seconds at the end of an epoch: evaluation, batch-norm statistics, checkpoint.
        training_end: Seconds at the end of the training: the statistics of the network that ships.
    """

    step: float
    epoch_end: float
    training_end: float

    def seconds(self, steps: int, epochs: int, step: float | None = None) -> float:
        """Returns the time of a whole training; `step` replaces the measured mean."""
        return steps * (self.step if step is None else step) + epochs * self.epoch_end + self.training_end


class TimedTeacher:
    """A teacher that takes the time of its own passes."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher, self.seconds = teacher, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def __call__(self, images: Any, want: Want = LOGITS) -> Activations:
        """Computes the outputs, and adds the time to `seconds`."""
        wait_for(self._teacher.device)
        began = time.perf_counter()
        outputs = self._teacher(images, want)
        wait_for(self._teacher.device)
        self.seconds += time.perf_counter() - began
        return outputs


@dataclass
class Stopwatch(Progress):
    """A Progress that nobody sees and that takes the time of every step."""

    steps: list[tuple[float, bool]] = field(default_factory=list)
    epoch_ends: list[float] = field(default_factory=list)
    reported: float = 0.0

    def __post_init__(self) -> None:
        super().__init__(quiet=True)

    def warn(self, message: str) -> None:
        """Swallows the warnings of a training that is not meant to get anywhere."""

    @contextmanager
    def bar(self, description: str, total: int | None, done: int = 0) -> Iterator[Bar]:
        """Takes the times of the units of a training."""
        yield _TimedBar(self)

    def result(self) -> Measured:
        """Returns the means."""
        taken = self.steps[WARM_UP:] or self.steps[-1:]  # a training may have fewer steps
        # With the first step of an epoch its checkpoint is written; epochs of one step have no others.
        steps = [seconds for seconds, opens in taken if not opens] or [seconds for seconds, _ in taken]
        mean_end = sum(self.epoch_ends) / max(1, len(self.epoch_ends))
        return Measured(sum(steps) / len(steps), mean_end, time.perf_counter() - self.reported)


class _TimedBar:
    def __init__(self, watch: Stopwatch) -> None:
        self._watch, self._last, self._opens = watch, time.perf_counter(), True

    def advance(self, amount: int = 1, note: str = "") -> None:
        now = time.perf_counter()
        self._watch.steps.append((now - self._last, self._opens))
        self._last, self._opens = now, False

    def report(self, text: str) -> None:
        now = time.perf_counter()
        self._watch.epoch_ends.append(now - self._last)
        self._watch.reported = self._last = now
        self._opens = True


def wait_for(device: torch.device) -> None:
    """Waits until a device has finished its work; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
