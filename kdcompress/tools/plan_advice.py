"""Divides the time of a planned training into parts, and finds the settings that would shorten it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kdcompress.tools.stopwatch import Measured

WORTH_SAYING = 1.03
"""Least gain in speed of an advice."""
FEWER_EVALUATIONS = 5
"""`train.evaluate_every` of the advice."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of the parts of an optimiser step.

    Args:
        teacher: Passes of the teacher.
        student: Passes of the student, and its update.
        data: Time that a step waits for its batch.
        rest: Losses, heads and peers of the method, optimiser, log.
        overlap: True: the next batch is made beside the step, which waits only for what takes longer.
    """

    teacher: float
    student: float
    data: float
    rest: float
    overlap: bool

    @property
    def whole(self) -> float:
        """Seconds of the step."""
        return self.teacher + self.student + self.data + self.rest

    @classmethod
    def of(cls, step: float, *, teacher: float, student: float, batch: float, overlap: bool) -> StepTimes:
        """Divides a measured step; parts that were measured alone give way to the whole.

        Args:
            step: Seconds of a whole step.
            teacher: Seconds of the teacher within it.
            student: Seconds of the student's passes alone.
            batch: Seconds in which a batch is made when nothing else computes.
            overlap: True: batches are made by worker processes, beside the step.
        """
        teacher = min(teacher, step)
        student = min(student, step - teacher)
        left = step - teacher - student
        # Of batches that are made beside the step only what they lag behind costs time.
        waited = max(0.0, batch - teacher - student) if overlap else batch
        data = min(waited, left)
        return cls(teacher, student, data, left - data, overlap)

    def with_teacher(self, seconds: float, batch: float) -> StepTimes:
        """Returns the times with another time of the teacher, as with outputs from a cache.

        Args:
            seconds: Of the teacher.
            batch: Seconds in which a batch is made when nothing else computes.
        """
        return replace(self, teacher=seconds).with_batch(batch)

    def with_batch(self, batch: float) -> StepTimes:
        """Returns the times with batches that are made in `batch` seconds when nothing else computes."""
        busy = self.whole - self.data
        return replace(self, data=max(0.0, batch - busy) if self.overlap else batch)


@dataclass(frozen=True, slots=True)
class Length:
    """Size of a training: optimiser steps, epochs, and evaluations among them."""

    steps: int
    epochs: int
    evaluations: int

    @classmethod
    def of(cls, steps: int, epochs: int, evaluate_every: int) -> Length:
        """Counts the evaluations: one every so many epochs, and one after the last."""
        return cls(steps, epochs, -(-epochs // evaluate_every))

    def seconds(self, measured: Measured, step: float) -> float:
        """Returns the time of a training whose steps take so long."""
        return measured.seconds(self.steps, self.epochs, self.evaluations, step)


def shares(times: StepTimes, measured: Measured, length: Length) -> dict[str, float]:
    """Returns the parts of a training's time, which add up to 1."""
    whole = length.seconds(measured, times.whole)
    parts = {
        "teacher": times.teacher,
        "student": times.student,
        "data": times.data,
        "losses_and_rest": times.rest,
    }
    found = {name: length.steps * seconds / whole for name, seconds in parts.items()}
    return {**found, "epoch_ends": max(0.0, 1 - sum(found.values()))}


def advice(
    now: StepTimes,
    alternatives: dict[str, StepTimes],
    measured: Measured,
    length: Length,
    evaluate_every: int,
) -> list[dict[str, Any]]:
    """Lists settings that would make the student's training faster, with their factor, the largest first.

    Args:
        now: A step with the recipe's settings.
        alternatives: A step with another setting, by the setting.
        measured: Times of the epochs' ends.
        length: Of the training.
        evaluate_every: The recipe's.
    """
    present = length.seconds(measured, now.whole)
    found = {key: present / length.seconds(measured, times.whole) for key, times in alternatives.items()}
    if evaluate_every < FEWER_EVALUATIONS and length.epochs >= 2 * FEWER_EVALUATIONS:
        fewer = Length.of(length.steps, length.epochs, FEWER_EVALUATIONS)
        found[f"train.evaluate_every={FEWER_EVALUATIONS}"] = present / fewer.seconds(measured, now.whole)
    ordered = sorted(found.items(), key=lambda pair: -pair[1])
    return [
        {"setting": setting, "speedup": speedup} for setting, speedup in ordered if speedup >= WORTH_SAYING
    ]
