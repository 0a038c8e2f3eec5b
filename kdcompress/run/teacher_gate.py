"""The least that a teacher must show before a student learns from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kdcompress.deploy.gate import Gate
from kdcompress.recipe import TeacherSection
from kdcompress.tasks.figures import selection_metric

ONE_SIDED = 1.645
"""The normal quantile of a one-sided 95 % interval."""
VARIATION = 1e-4
"""Least variation of a teacher's outputs between images, checked where no labels say how good it is."""


def chance_level(figure: str, counts: Sequence[int]) -> float:
    """Returns the figure of a teacher that gives every image the same class (0 to 1).

    Args:
        figure: balanced_top1 or another share of correct images.
        counts: Number of labelled images by class.
    """
    present = [count for count in counts if count]
    return 1 / len(present) if figure == "balanced_top1" else max(present) / sum(present)


def least_top1(figure: str, counts: Sequence[int]) -> float:
    """Returns the held-out figure that a teacher must reach unless the recipe says otherwise (0 to 1).

    The upper end of the one-sided 95 % interval that a teacher at chance level has on so few images: 0.137
    for ten classes of 18 images, 0.0015 for a thousand of 10, 0.73 for 100 images of which 65 are of a class.

    Args:
        figure: balanced_top1 or another share of correct images.
        counts: Number of labelled images by class.
    """
    chance = chance_level(figure, counts)
    present = [count for count in counts if count]
    if figure == "balanced_top1":
        variance = chance * (1 - chance) * sum(1 / count for count in present) / len(present) ** 2
    else:
        variance = chance * (1 - chance) / sum(present)
    return min(chance + ONE_SIDED * math.sqrt(variance), (1 + chance) / 2)


def weak_top1_limit(chance: float) -> float:
    """Returns the figure below which a teacher is called weak: three times chance, at most halfway to 1."""
    return min(3 * chance, (1 + chance) / 2)


def teacher_gate(section: TeacherSection, figures: dict[str, Any], on: str, counts: Sequence[int]) -> Gate:
    """Compares the held-out figures with the least accepted: a top-1, or without labels outputs that vary."""
    metric = selection_metric(figures)
    waived = ", waived by teacher.min_top1: 0" if section.min_top1 == 0 else ""
    if metric is None:
        least = 0.0 if section.min_top1 == 0 else VARIATION
        detail = f"spread of {section.model}'s outputs between images over their mean size {on}{waived}"
        varies = figures["variation"]
        return Gate("teacher_outputs_vary", varies >= least, varies, least, detail)
    least = least_top1(metric, counts) if section.min_top1 is None else section.min_top1
    what = {"top1": "top-1", "balanced_top1": "balanced top-1"}.get(metric, "top-1 by nearest neighbours")
    detail = f"{what} of {section.model} {on}{waived}"
    return Gate(f"teacher_{metric}", figures[metric] >= least, figures[metric], least, detail)


def percent_text(figure: Any) -> str:
    """Returns a share in percent, in three digits."""
    return f"{100 * figure:.3g} %"
