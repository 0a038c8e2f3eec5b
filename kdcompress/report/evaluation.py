"""Computes what the report says of a student's quality on the test split: intervals, calibration, mistakes.

Short figures go into `results.json`; curves, the confusion matrix and the thumbnails into `details.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcompress.data.class_weights import unequal_classes
from kdcompress.metrics import two_classes
from kdcompress.metrics.calibration import calibration, fit_temperature
from kdcompress.metrics.intervals import balanced_interval, share_interval
from kdcompress.metrics.split_rows import block_rows
from kdcompress.report import verdict
from kdcompress.tasks.classification import cross_entropies

NAME = "details.json"
SCHEMA = "kdcompress.details/1"
MOST_CLASSES = 50
"""Of a stored confusion matrix; with more, only the most frequent mistakes are stored."""
MOST_CONFUSIONS = 20
MOST_MISTAKES = 12
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class SplitOutputs:
    """A classifier's outputs on a split.

    Args:
        logits: `[N, K]`.
        labels: `[N]` int64; -1 = none.
    """

    logits: Tensor
    labels: Tensor

    def labelled(self) -> SplitOutputs:
        """Selects the images with a label."""
        known = self.labels >= 0
        if bool(known.all()):  # no second copy of many numbers
            return self
        return SplitOutputs(self.logits[known], self.labels[known])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of a student beside those of `accuracy`.

    Args:
        student: New keys of the `student` object of `results.json`.
        largest_class: The `largest_class` object of `results.json`; None without labels.
        details: `details.json`.
    """

    student: dict[str, Any]
    largest_class: dict[str, Any] | None
    details: dict[str, Any]


def temperature_of(held_out: SplitOutputs | None) -> float | None:
    """Fits the temperature on held-out images; None: there is none with a label."""
    if held_out is None or not bool((held_out.labels >= 0).any()):
        return None
    return fit_temperature(held_out.logits, held_out.labels)


def evaluate_classifier(
    test: SplitOutputs,
    held_out: SplitOutputs | None,
    *,
    temperature: float | None,
    train_counts: Sequence[int],
    teacher_logits: Tensor | None,
    pictures: Callable[[Tensor], list[str]],
) -> Evaluation:
    """Evaluates a classifier on the test split.

    Nothing is fitted or chosen on the test images: the temperature and the threshold come from held-out ones.

    Args:
        test: Outputs of the exported file.
        held_out: Outputs on held-out images; None: there are none.
        temperature: Fitted on them; None: not fitted.
        train_counts: Labelled training images by class; all 0: not known.
        teacher_logits: `[N, K]` on the same images; None: there is no teacher.
        pictures: Makes thumbnails of the test images with these positions.
    """
    known = test.labelled()
    if not len(known.labels):
        return Evaluation({}, None, {"schema": SCHEMA})
    num_classes = known.logits.shape[1]
    counts = torch.bincount(known.labels, minlength=num_classes).tolist()
    largest = largest_class(known.labels, num_classes, train_counts, known.logits.argmax(1))
    student: dict[str, Any] = {"calibration": _calibration(known, held_out, temperature)}
    details: dict[str, Any] = {
        "schema": SCHEMA,
        "class_counts": counts,
        **confusions(known.labels, known.logits.argmax(1), num_classes),
        "calibration": _calibration_curves(known, temperature),
        "mistakes": _mistakes(test, teacher_logits, pictures),
    }
    if num_classes == 2 and two_classes.both_occur(known.labels):
        positive = _positive(train_counts if any(train_counts) else counts)
        student["two_classes"], details["two_classes"] = _two_classes(known, held_out, positive)
    return Evaluation(student, largest, details)


def largest_class(
    labels_N: Tensor, num_classes: int, train_counts: Sequence[int], predictions_N: Tensor | None
) -> dict[str, Any]:
    """Computes the figures of the answer that is always the largest class, and the student's lead on it.

    Args:
        labels_N: Of the labelled test images.
        num_classes: K.
        train_counts: Labelled training images by class; all 0: the largest class of the test split counts.
        predictions_N: The student's classes; None: it is no classifier of these classes.

    Returns:
        `class`, `largest_in` (train or test), `top1`, `balanced_top1`, and `student_ahead` (as
        `verdict.gain`, of the balanced top-1 where the classes are unequal), None without predictions.
    """
    counts = torch.bincount(labels_N, minlength=num_classes)
    in_train = any(train_counts)
    number = int((torch.tensor(list(train_counts)) if in_train else counts).argmax())
    always, present = labels_N == number, int((counts > 0).sum())
    ahead = None
    if predictions_N is not None:
        balanced = unequal_classes(counts.tolist())
        ahead = verdict.gain(predictions_N == labels_N, always, labels_N if balanced else None)
    return {
        "class": number,
        "largest_in": "train" if in_train else "test",
        "top1": always.double().mean().item(),
        "balanced_top1": (1 / present) if bool(always.any()) else 0.0,
        "student_ahead": ahead,
    }


def intervals(scores: dict[str, Any], counts: Sequence[int] | None) -> dict[str, list[float] | None]:
    """Computes the 95 % intervals `top1_ci95` and `balanced_top1_ci95` of one network.

    Args:
        scores: Its figures: `top1`, `n`, `per_class`.
        counts: Labelled test images by class; None: not known.
    """
    if scores.get("top1") is None or not scores.get("n"):
        return {}
    found: dict[str, list[float] | None] = {
        "top1_ci95": share_interval(round(scores["top1"] * scores["n"]), scores["n"])
    }
    if counts is not None and len(counts) == len(scores.get("per_class") or []):
        found["balanced_top1_ci95"] = balanced_interval(scores["per_class"], counts)
    return found


def confusions(labels_N: Tensor, predictions_N: Tensor, num_classes: int) -> dict[str, Any]:
    """Counts the test images by true and given class.

    Returns:
        `confusion`: `[K][K]` counts, rows are true classes, None for more than `MOST_CLASSES`; `confusions`:
        the most frequent mistakes as {label, given, n}.
    """
    places_N = labels_N * num_classes + predictions_N
    # The pairs that occur: those that could would be 10¹⁰ for 100,000 classes.
    places, counts = torch.unique(places_N[labels_N != predictions_N], return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:MOST_CONFUSIONS].tolist()
    frequent = [
        {"label": place // num_classes, "given": place % num_classes, "n": n}
        for place, n in ((int(places[at]), int(counts[at])) for at in order)
    ]
    if num_classes > MOST_CLASSES:
        return {"confusion": None, "confusions": frequent}
    pairs = torch.bincount(places_N, minlength=num_classes**2)
    return {"confusion": pairs.view(num_classes, num_classes).tolist(), "confusions": frequent}


def _calibration(
    test: SplitOutputs, held_out: SplitOutputs | None, temperature: float | None
) -> dict[str, Any]:
    before, _ = calibration(test.logits, test.labels)
    after = None if temperature is None else calibration(test.logits, test.labels, temperature)[0]
    fitted = None
    if temperature is not None and held_out is not None:
        fitted = {"split": "held-out", "n": len(held_out.labelled().labels)}
    return {"temperature": temperature, "fitted_on": fitted, "ece": before, "ece_calibrated": after}


def _calibration_curves(test: SplitOutputs, temperature: float | None) -> dict[str, Any]:
    _, bins = calibration(test.logits, test.labels)
    scaled = [] if temperature is None else calibration(test.logits, test.labels, temperature)[1]
    return {"bins": [b.to_json() for b in bins], "bins_calibrated": [b.to_json() for b in scaled]}


def _positive(counts: Sequence[int]) -> int:
    """Returns the rarer of two classes, which is usually the one to find; the second if they are equal."""
    return 0 if counts[0] < counts[1] else 1


def _two_classes(
    test: SplitOutputs, held_out: SplitOutputs | None, positive: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Computes the figures for results.json and the curves for details.json."""
    scores, truth = two_classes.scores(test.logits, positive), (test.labels == positive).numpy()
    found = two_classes.curves(scores, truth)
    chosen = None
    known = None if held_out is None else held_out.labelled()
    if known is not None and two_classes.both_occur(known.labels):
        best = two_classes.best_threshold(
            two_classes.scores(known.logits, positive), (known.labels == positive).numpy()
        )
        at = two_classes.operation(scores, truth, best)
        chosen = {**at.to_json(), "chosen_on": {"split": "held-out", "n": len(known.labels)}}
    figures = {
        "positive": positive,
        "roc_auc": found.roc_auc,
        "average_precision": found.average_precision,
        "at_half": two_classes.operation(scores, truth, DEFAULT_THRESHOLD).to_json(),
        "threshold": chosen,
    }
    return figures, {"roc": found.roc, "precision_recall": found.precision_recall}


def _mistakes(
    test: SplitOutputs, teacher_logits: Tensor | None, pictures: Callable[[Tensor], list[str]]
) -> list[dict[str, Any]]:
    """Describes the images with the largest loss among those where only the student errs.

    Without a teacher: among all that the student gets wrong.
    """
    given = test.logits.argmax(1)
    wrong = (test.labels >= 0) & (given != test.labels)
    teacher = None if teacher_logits is None else teacher_logits.argmax(1)
    if teacher is not None:
        wrong &= teacher == test.labels
    rows = wrong.nonzero().flatten()
    if not len(rows):
        return []
    parts = torch.split(rows, block_rows(test.logits))
    losses = torch.cat([cross_entropies(test.logits[part], test.labels[part]) for part in parts])
    rows = rows[losses.argsort(descending=True, stable=True)[:MOST_MISTAKES]]
    probabilities = test.logits[rows].double().softmax(1)
    return [
        {
            "position": int(row),
            "label": int(test.labels[row]),
            "given": int(given[row]),
            "probability": probabilities[place].max().item(),
            "teacher": None if teacher is None else int(teacher[row]),
            "image": picture,
        }
        for place, (row, picture) in enumerate(zip(rows, pictures(rows), strict=True))
    ]
