"""Tests whether a classifier or a way of training is better than another or the difference is chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Verdict = Literal["better", "worse", "no difference shown"]

_Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


def gain(
    student_correct: ArrayLike, baseline_correct: ArrayLike, classes: ArrayLike | None = None
) -> dict[str, Any]:
    """Computes the paired difference in top-1, with its 95 % interval, in percentage points.

    Both classifiers saw the same images, so only the images on which they differ carry information
    (McNemar). The interval is the adjusted Wald interval for paired proportions: one image is added to each
    kind of disagreement, which keeps its coverage near 95 % for few images and gives it a width even when
    the two never differ.

    With classes it is the difference in balanced top-1, the mean of the classes' differences; the added
    images are shared out among the classes.

    Args:
        student_correct: `[n]` booleans, whether each image is classified rightly.
        baseline_correct: `[n]` booleans, of the same images in the same order.
        classes: `[n]` true classes, for the balanced top-1; None: every image counts the same.

    Returns:
        `figure` (top1 or balanced_top1), `points` (student less baseline; 0 when equal), `ci95` (low, high)
        and `verdict`: "better" or
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
    groups = np.zeros(len(student), dtype=np.int64) if classes is None else np.asarray(classes)
    _, group_of = np.unique(groups, return_inverse=True)
    counts = np.bincount(group_of)
    won, lost = (np.bincount(group_of, weights=w) for w in (student & ~baseline, ~student & baseline))
    added = 1 / len(counts)
    share_won, share_lost = ((part + added) / (counts + 2 * added) for part in (won, lost))
    difference = share_won - share_lost
    variance = ((share_won + share_lost - difference**2) / (counts + 2 * added)).sum() / len(counts) ** 2
    centre, half = float(difference.mean()), _Z * math.sqrt(variance)
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return {
        "figure": "top1" if classes is None else "balanced_top1",
        "points": 100 * float(((won - lost) / counts).mean()),
        "ci95": [100 * low, 100 * high],
        "verdict": _verdict(low, high),
    }


def gain_over_seeds(points: Sequence[float], image_errors: Sequence[float] = ()) -> dict[str, Any]:
    """Computes the mean difference of two ways of training and its 95 % interval, by Student's t over seeds.

    The differences are those of pairs of runs with a seed in common. Their variance is taken to be at least
    that which the choice of a pair's images alone would give: differences of few seeds can agree by chance,
    and then have too narrow an interval.

    Args:
        points: The difference of each pair in percentage points, at least two.
        image_errors: Standard error of each, over its test images, as `image_error` gives it; empty: not
            known.

    Returns:
        `points` (the mean), `sd` (their standard deviation), `n`, `ci95` (low, high) and `verdict`, as in
        `gain`.
    """
    mean, sd, count = statistics.fmean(points), statistics.stdev(points), len(points)
    least = statistics.fmean(error**2 for error in image_errors) if image_errors else 0.0
    half = float(stats.t.ppf(0.975, count - 1)) * math.sqrt(max(sd**2, least) / count)
    low, high = mean - half, mean + half
    return {"points": mean, "sd": sd, "n": count, "ci95": [low, high], "verdict": _verdict(low, high)}


def image_error(gain: dict[str, Any]) -> float:
    """Computes the standard error over the test images of a difference that `gain` gave, in points."""
    low, high = gain["ci95"]
    return float(high - low) / (2 * _Z)


def _verdict(low: float, high: float) -> Verdict:
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"
