"""Finds the most likely cause of a distillation that shows no gain, and the next command to try."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

HARDLY_BETTER = 0.01
"""Lead over the student without distillation, as a share, up to which a teacher has nothing to teach."""
FEW_STEPS = 1_000
"""Optimiser steps below which trainings of this kind are usually still improving."""
TOO_WIDE = 1.0
"""Half width of the gain's 95 % interval, in points, above which the test images are few."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One likely cause.

    Args:
        key: cut_short, single_class, weak_teacher, few_steps, few_test_images or unknown.
        sentence: Says what is likely, with its figures.
        advice: Says what to try next, as options of `kdcompress distill`.
    """

    key: str
    sentence: str
    advice: str

    def to_json(self) -> dict[str, str]:
        """Returns it for `results.json`."""
        return asdict(self)


def find_cause(
    gain: dict[str, Any],
    student: dict[str, Any],
    teacher: dict[str, Any] | None,
    baseline: dict[str, Any],
    *,
    figure: str,
    steps: int,
    epochs: int,
    cut_short: bool,
) -> Cause | None:
    """Returns the first cause that applies, from the surest to the least sure; None: the student is better.

    Args:
        gain: `gain` of `results.json`.
        student: Its figures on the test split.
        teacher: The same of the teacher; None: the method has none.
        baseline: The same of the student without distillation.
        figure: Name of the figure that decides, a share of 0 to 1.
        steps: Optimiser steps of the student's training.
        epochs: Its epochs.
        cut_short: True if `train.max_steps` ended the training before its last epoch.
    """
    if gain["verdict"] == "better":
        return None
    if cut_short:
        return Cause(
            "cut_short",
            f"the training was cut off after {steps:,} steps (train.max_steps)",
            "--set train.max_steps=null",
        )
    if student.get("single_class") is not None:
        return Cause(
            "single_class",
            "the student gives nearly all test images one class",
            f"--set train.class_weights=balanced --set train.epochs={2 * epochs}",
        )
    if teacher is not None and teacher.get(figure) is not None and baseline.get(figure) is not None:
        lead = teacher[figure] - baseline[figure]
        if lead <= HARDLY_BETTER:
            return Cause(
                "weak_teacher",
                f"the teacher is hardly better than the student without it ({100 * lead:+.1f} points), so "
                "there is nothing to learn from it",
                "more --set teacher.epochs=…, other --set teacher.weights=…, or a larger teacher.model",
            )
    if steps < FEW_STEPS:
        factor = -(-FEW_STEPS * 2 // max(1, steps))
        return Cause(
            "few_steps",
            f"the training had {steps:,} steps, and a small network usually still improves after "
            f"{FEW_STEPS:,}",
            f"--set train.epochs={factor * epochs}",
        )
    low, high = gain["ci95"]
    if gain["verdict"] == "no difference shown" and (high - low) / 2 > TOO_WIDE:
        images = f"{student['n']:,}" if student.get("n") else "the"
        return Cause(
            "few_test_images",
            f"{images} test images can show a difference of about {(high - low) / 2:.1f} points at the least",
            "--seeds 3, or more images in test/",
        )
    return Cause("unknown", "none of the usual causes applies", "--method kd, or --seeds 3 to see the spread")
