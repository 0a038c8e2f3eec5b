"""Quality of a run's student: beside the largest class and the teacher, by class, and as one badge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kdcompress.errors import UserError
from kdcompress.metrics.intervals import share_interval
from kdcompress.report import evaluation, numbers
from kdcompress.report.predictions import read_predictions
from kdcompress.report.record import Record
from kdcompress.tasks.figures import FIGURES, comparable, selection_metric

WEAKEST = 5
"""Classes named above the fold."""
MOST_COMPARED = 5_000
"""Images whose nearest neighbours are looked at, of a larger test split."""
LEAST_OF_LEAD = 0.5
"""Share of the teacher's lead over the largest class below which a student is called far behind."""


@dataclass(frozen=True, slots=True)
class Badge:
    """The one-line verdict on the student.

    Args:
        level: good (green), amber or bad (red).
        text: In a few words.
        reason: In a sentence; empty for good.
    """

    level: Literal["good", "amber", "bad"]
    text: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One row of the comparison.

    Args:
        role: student, always the largest class, teacher or baseline.
        note: Network or class.
        cells: (column, figure, 95 % interval) of each figure; texts.
    """

    role: str
    note: str
    cells: list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class of the test split.

    Args:
        name: Its name.
        n: Its labelled test images; None: not known.
        student: The student's top-1 of it.
        teacher: The teacher's; None: not known.
        baseline: The baseline's; None: not known.
    """

    name: str
    n: int | None
    student: float
    teacher: float | None
    baseline: float | None

    @property
    def right(self) -> str:
        """Formats `18 of 21 images`, or the share where the number of images is not known."""
        if self.n is None:
            return numbers.percent(self.student)
        return f"{round(self.student * self.n):,} of {self.n:,} images"


@dataclass(frozen=True, slots=True)
class Quality:
    """Facts about a student's quality beside its figures.

    Args:
        record: The run.
        counts: Labelled test images by class; None: not known.
        largest: `largest_class` of `results.json`; None: not known.
        details: `details.json`, or as much of it as an older run's predictions give.
    """

    record: Record
    counts: list[int] | None
    largest: dict[str, Any] | None
    details: dict[str, Any]

    def name(self, number: int) -> str:
        """Returns the name of a class."""
        names = self.record.class_names
        return names[number] if number < len(names) else f"class {number}"


def read_quality(record: Record) -> Quality:
    """Collects the quality of a run; of an older run from its predictions, as far as there are any."""
    details, largest = record.details, record.results.get("largest_class")
    scores = record.results["student"]
    if details:
        counts = details.get("class_counts")
        # Of clusters there are other counts than of classes.
        if counts is not None and len(counts) != len(scores.get("per_class") or counts):
            counts = None
        return Quality(record, counts, largest, details)
    stored = read_predictions(record.folder / "checkpoints")
    if stored is None or scores.get("top1") is None or not scores.get("per_class"):
        return Quality(record, None, largest, {})
    known, count = stored.labelled(), len(scores["per_class"])
    labels, classes = known.labels, known.classes
    if len(labels) == 0 or max(labels.max(), classes.max()) >= count or classes.min() < 0:
        raise UserError(f"{record.folder}: is damaged: its stored predictions are not of {count} classes")
    counts = torch.bincount(labels, minlength=count).tolist()
    details = {"class_counts": counts, **evaluation.confusions(labels, classes, count)}
    return Quality(record, counts, evaluation.largest_class(labels, count, [], classes), details)


def badge(quality: Quality) -> Badge:
    """Judges the student: good only if every gate passed and it beats the largest class beyond chance."""
    record = quality.record
    gates, failed, student = record.gates, record.failed_gates, record.results["student"]
    if failed:
        return Badge("bad", f"{len(failed)} of {len(gates)} gates failed: not fit to ship")
    if not gates:
        return Badge(
            "amber", "not proved", "The run has no gates.json, so nothing shows that the files are right."
        )
    reason = _doubt(quality)
    if reason:
        return Badge("amber", "right, but not shown to be good", reason)
    behind = _behind_teacher(quality)
    if behind:
        return Badge("amber", "right, but far behind its teacher", behind)
    names = {"knn_top1": "top-1 by nearest neighbours"}
    key = selection_metric(student) or "top1"
    return Badge("good", f"right, and better than the largest class ({names.get(key, FIGURES[key].title)})")


def _behind_teacher(quality: Quality) -> str:
    """Says how little of the teacher's lead over the largest class the student has; empty if it has half."""
    student, largest = quality.record.results["student"], quality.largest
    teacher, key = quality.record.results.get("teacher") or {}, selection_metric(student)
    if key is None or largest is None or largest.get(key) is None or teacher.get(key) is None:
        return ""
    lead, teachers = student[key] - largest[key], teacher[key] - largest[key]
    if teachers <= 0 or lead >= LEAST_OF_LEAD * teachers:
        return ""
    share = int(100 * lead / teachers)
    return (
        f"It beats always {quality.name(largest['class'])!r}, but has only {share} % of its teacher's lead "
        f"over that: {FIGURES[key].title} {numbers.percent(student[key])}, teacher "
        f"{numbers.percent(teacher[key])}."
    )


def _doubt(quality: Quality) -> str:
    """Says why the student is not shown to be good; empty if it is."""
    student, largest = quality.record.results["student"], quality.largest
    key = selection_metric(student)
    if key in (None, "agreement"):
        return "No test image has a label, so nothing shows that it is better than always the same answer."
    if student.get("single_class") is not None:
        return "It gives nearly all images one class."
    if largest is None:
        return (
            "The run does not say how many test images each class has, so it cannot be compared with always "
            "the largest class; run it again."
        )
    ahead, always = largest["student_ahead"], f"always {quality.name(largest['class'])!r}"
    if ahead is not None:
        if ahead["verdict"] == "better":
            return ""
        return (
            f"Against {always} the difference is {numbers.points(ahead['points'])} points of "
            f"{FIGURES[ahead['figure']].title} (95 % interval {numbers.points_interval(ahead)}), "
            + ("so it is worse than no network." if ahead["verdict"] == "worse" else "which may be chance.")
        )
    n = min(int(student["n"]), MOST_COMPARED)
    ends = share_interval(round(student[key] * n), n)
    if ends is not None and ends[0] > largest["top1"]:
        return ""
    return (
        f"{FIGURES[str(key)].title} is {numbers.percent(student[key])}; {always} is right for "
        f"{numbers.percent(largest['top1'])}, which is not less beyond chance."
    )


def score_rows(quality: Quality) -> list[ScoreRow]:
    """Builds the comparison: student, always the largest class, teacher, baseline."""
    record, results = quality.record, quality.record.results
    figures = comparable(results["student"])
    rows = [_scores("student", record.student, results["student"], quality)]
    if quality.largest is not None and any(figure.key in quality.largest for figure in figures):
        cells = [(f.title, numbers.percent(quality.largest.get(f.key)), "") for f in figures]
        rows.append(ScoreRow("always the largest class", quality.name(quality.largest["class"]), cells))
    models = {"teacher": record.teacher or "", "baseline": f"{record.student}, without distillation"}
    rows += [
        _scores(role, note, results[role], quality) for role, note in models.items() if results.get(role)
    ]
    return rows


def ends_of(scores: dict[str, Any], key: str, counts: Sequence[int] | None) -> list[float] | None:
    """Returns the 95 % interval of a figure, as stored or computed; None: not known."""
    stored = scores.get(f"{key}_ci95")
    if stored is not None:
        return list(stored)
    return evaluation.intervals(scores, counts).get(f"{key}_ci95")


def _scores(role: str, note: str, scores: dict[str, Any], quality: Quality) -> ScoreRow:
    cells = []
    for figure in comparable(quality.record.results["student"]):
        ends = ends_of(scores, figure.key, quality.counts)
        within = "" if ends is None else numbers.percent_interval(ends)
        cells.append((figure.title, numbers.percent(scores.get(figure.key)), within))
    return ScoreRow(role, note, cells)


def ahead_sentence(quality: Quality) -> str:
    """Describes the student's lead on always the largest class; empty if it is not known."""
    largest = quality.largest
    if largest is None or largest["student_ahead"] is None:
        return ""
    ahead = largest["student_ahead"]
    split = {"train": "of the training images", "test": "of the test images"}[largest["largest_in"]]
    return (
        f"{numbers.points(ahead['points'])} points of {FIGURES[ahead['figure']].title} against always "
        f"{quality.name(largest['class'])!r}, the largest class {split} "
        f"(95 % interval {numbers.points_interval(ahead)})."
    )


def class_rows(quality: Quality) -> list[ClassRow]:
    """Lists the classes that occur in the test split, the student's weakest first."""
    results = quality.record.results
    student = results["student"].get("per_class") or []
    if not student:
        return []  # a backbone, whatever classes its teacher knows
    others = [
        (results.get(role) or {}).get("per_class") or [None] * len(student)
        for role in ("teacher", "baseline")
    ]
    rows = [
        ClassRow(quality.name(number), quality.counts[number] if quality.counts else None, own, *shares)
        for number, (own, *shares) in enumerate(zip(student, *others, strict=True))
        if own is not None
    ]
    return sorted(rows, key=lambda row: row.student)
