"""Curves and threshold of a classifier of two classes, by scikit-learn."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from torch import Tensor

MOST_POINTS = 200
"""Points of a stored curve."""


@dataclass(frozen=True, slots=True)
class Curves:
    """ROC and precision-recall curve on one split.

    Args:
        roc_auc: Area under the ROC curve, 0.5 (chance) to 1.
        average_precision: Area under the precision-recall curve as scikit-learn sums it.
        roc: (false positive rate, recall), ascending.
        precision_recall: (recall, precision), recall ascending.
    """

    roc_auc: float
    average_precision: float
    roc: list[tuple[float, float]]
    precision_recall: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Operation:
    """Figures of a classifier at one threshold.

    Args:
        threshold: Images whose probability of the positive class is at least this are called positive.
        recall: Share of the positive images that are found.
        precision: Share of the images called positive that are; None: no image is.
        false_positive_rate: Share of the negative images called positive.
        balanced_top1: Mean of the two classes' top-1.
    """

    threshold: float
    recall: float
    precision: float | None
    false_positive_rate: float
    balanced_top1: float

    def to_json(self) -> dict[str, Any]:
        """Returns it for a document."""
        return asdict(self)


def scores(logits_N2: Tensor, positive: int) -> NDArray[np.float64]:
    """Returns the probability of the positive class, `[N]`; no temperature."""
    return np.asarray(logits_N2.double().softmax(1)[:, positive].numpy())


def both_occur(labels_N: Tensor) -> bool:
    """Returns whether there are images of both classes."""
    return all(bool((labels_N == number).any()) for number in (0, 1))


def curves(scores_N: NDArray[np.float64], positive_N: NDArray[np.bool_]) -> Curves:
    """Computes both curves.

    Args:
        scores_N: Probability of the positive class.
        positive_N: Images that are of it; both kinds occur.
    """
    false_rate, recall, _ = roc_curve(positive_N, scores_N)
    precision, found, _ = precision_recall_curve(positive_N, scores_N)
    return Curves(
        float(roc_auc_score(positive_N, scores_N)),
        float(average_precision_score(positive_N, scores_N)),
        _thinned(false_rate, recall),
        _thinned(found[::-1], precision[::-1]),
    )


def best_threshold(scores_N: NDArray[np.float64], positive_N: NDArray[np.bool_]) -> float:
    """Returns the threshold with the largest balanced top-1, for held-out images.

    It lies halfway between the scores on its two sides.

    Source: W. J. Youden, Index for rating diagnostic tests, Cancer, 1950.
    """
    false_rate, recall, thresholds = roc_curve(positive_N, scores_N, drop_intermediate=False)
    best = int(np.argmax(recall - false_rate))
    above = scores_N[scores_N >= thresholds[best]]
    below = scores_N[scores_N < thresholds[best]]
    if not len(above) or not len(below):
        return float(min(1.0, thresholds[best]))
    return float(f"{(above.min() + below.max()) / 2:.6g}")


def operation(scores_N: NDArray[np.float64], positive_N: NDArray[np.bool_], threshold: float) -> Operation:
    """Computes the figures at a threshold; both kinds of images occur."""
    called = scores_N >= threshold
    recall, false_rate = float(called[positive_N].mean()), float(called[~positive_N].mean())
    precision = float(positive_N[called].mean()) if called.any() else None
    return Operation(threshold, recall, precision, false_rate, (recall + 1 - false_rate) / 2)


def _thinned(xs: NDArray[np.float64], ys: NDArray[np.float64]) -> list[tuple[float, float]]:
    keep = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), MOST_POINTS)).round().astype(int))
    return [(round(float(xs[i]), 5), round(float(ys[i]), 5)) for i in keep]
