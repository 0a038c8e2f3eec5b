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
LEAST_EPOCHS = 3
"""Epochs of a measured training: one without an evaluation, the first evaluation, and another."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Times of one training.

    Args:
        step: Mean seconds of an optimiser step, data loading included.
        epoch_end: Seconds that an epoch adds to its steps: batch-norm statistics of the method, checkpoint,
            and what its first step takes longer.
        evaluation: Seconds of the evaluation after an epoch.
        first_evaluation: Seconds that the first evaluation takes longer, since it decodes the images.
        training_end: Seconds at the end of the training: the statistics of the network that ships.
    """

    step: float
    epoch_end: float = 0.0
    evaluation: float = 0.0
    first_evaluation: float = 0.0
    training_end: float = 0.0

    def seconds(self, steps: int, epochs: int, evaluations: int, step: float | None = None) -> float:
        """Returns the time of a whole training; `step` replaces the measured mean."""
        ends = epochs * self.epoch_end + evaluations * self.evaluation
        return (
            steps * (self.step if step is None else step) + ends + self.first_evaluation + self.training_end
        )


class TimedTeacher:
    """A teacher that takes the time of its own passes."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.passes: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._teacher, name)

    def __call__(self, images: Any, want: Want = LOGITS) -> Activations:
        """Computes the outputs, and adds the time to `passes`."""
        wait_for(self._teacher.device)
        began = time.perf_counter()
        outputs = self._teacher(images, want)
        wait_for(self._teacher.device)
        self.passes.append(time.perf_counter() - began)
        return outputs

    def seconds(self, steps: int) -> float:
        """Returns the seconds of a step's passes.

        Args:
            steps: Number of steps in which all passes were made; those of the first ones are left out.
        """
        if not self.passes:
            return 0.0
        per_step = len(self.passes) / steps
        settled = self.passes[round(min(WARM_UP, steps - 1) * per_step) :]
        return per_step * sum(settled) / len(settled)


@dataclass
class Stopwatch(Progress):
    """A Progress that nobody sees and that takes the time of every step.

    It expects a training of three epochs or more of which the last two alone are evaluated.
    """

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
        settled = self.steps[WARM_UP:] or self.steps[-1:]
        opening = [seconds for seconds, opens in settled if opens]
        # Before the first step of an epoch the checkpoint of the last one is written; epochs of one step have
        # no other steps.
        others = [seconds for seconds, opens in settled if not opens]
        step = _mean(others or opening)
        *plain_ends, first, last = self.epoch_ends
        plain = _mean(plain_ends)
        return Measured(
            step,
            epoch_end=plain + max(0.0, _mean(opening) - step),
            evaluation=max(0.0, last - plain),
            first_evaluation=max(0.0, first - last),
            training_end=time.perf_counter() - self.reported,
        )


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


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
