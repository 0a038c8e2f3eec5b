"""Tests whether one classifier is better than another on the same images or the difference is chance."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

Verdict = Literal["better", "worse", "no difference shown"]

_Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


def gain(student_correct: ArrayLike, baseline_correct: ArrayLike) -> dict[str, Any]:
    """Describes the paired difference in top-1, with its 95 % interval, in percentage points.

    Both classifiers saw the same images, so only the images on which they differ carry information
    (McNemar). The interval is the adjusted Wald interval for paired proportions: one image is added to each
    kind of disagreement, which keeps its coverage near 95 % for few images and gives it a width even when
    the two never differ.

    Args:
        student_correct: `[n]` booleans, whether each image is classified rightly.
        baseline_correct: `[n]` booleans, of the same images in the same order.

    Returns:
        `points` (student less baseline; 0 when equal), `ci95` (low, high) and `verdict`: "better" or
        "worse" only if the whole interval lies on that side of 0.

    Raises:
        ValueError: The two are not of the same images, or there are none.

    Source: D. G. Bonett and R. M. Price, Confidence intervals for a ratio and a difference of binomial
    proportions
        based on paired data, Journal of Educational and Behavioral Statistics, 2012, equation 5.
    """
    student, baseline = np.asarray(student_correct, dtype=bool), np.asarray(baseline_correct, dtype=bool)
    if student.shape != baseline.shape or student.ndim != 1 or not len(student):
        raise ValueError(
            f"expected two equally long lists of images, got {student.shape} and {baseline.shape}"
        )
    count = len(student)
    won, lost = int((student & ~baseline).sum()), int((~student & baseline).sum())
    share_won, share_lost = (won + 1) / (count + 2), (lost + 1) / (count + 2)
    centre = share_won - share_lost
    half = _Z * math.sqrt((share_won + share_lost - centre**2) / (count + 2))
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    verdict: Verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    return {
        "points": 100 * (won - lost) / count,
        "ci95": [100 * low, 100 * high],
        "verdict": verdict,
    }
