"""The headline figures of a run: accuracy, size, speed and gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kdcompress.report import numbers, words
from kdcompress.report.record import Record
from kdcompress.tasks.figures import FIGURES, selection_metric


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the headline.

    Args:
        figure: Large.
        what: Name of the figure, in a few words.
        detail: Comparison and confidence.
    """

    figure: str
    what: str
    detail: str


def tiles(record: Record) -> list[Tile]:
    """Builds the headline: accuracy, size, speed and gain, each as far as it is known."""
    parts = (accuracy_tile(record), size_tile(record), speed_tile(record), gain_tile(record))
    return [tile for tile in parts if tile]


def size_tile(record: Record) -> Tile:
    """Builds the tile of the size, beside the teacher's where there is one."""
    student, teacher = record.results["student"], record.results.get("teacher")
    if teacher and teacher.get("params") and student.get("params"):
        sizes = f"{numbers.count(student['params'])} parameters against {numbers.count(teacher['params'])}"
        return Tile(numbers.times(teacher["params"] / student["params"]), "smaller than the teacher", sizes)
    size = numbers.megabytes(student.get("bytes"))
    return Tile(numbers.count(student.get("params")), "parameters", f"{size} as a file")


def accuracy_tile(record: Record) -> Tile:
    """Builds the tile of the figure that decides."""
    student, teacher = record.results["student"], record.results.get("teacher") or {}
    key = selection_metric(student)
    if key is None and student.get("agreement") is None:
        return Tile(numbers.UNKNOWN, "no figure says how good it is", "the test images have no labels")
    if key is None or key == "agreement":
        what = "of nearest neighbours are also the teacher's"
        return Tile(
            numbers.percent(student.get("agreement")),
            "agreement with the teacher" if record.task.has_classes else what,
            "the data has no labels"
            + ("; the student is nearly constant" if student.get("constant") else ""),
        )
    detail = "of the exported file, on the test split"
    if teacher.get(key) is not None:
        below = 100 * (student[key] - teacher[key])
        detail = f"teacher {numbers.percent(teacher[key])} ({numbers.points(below)} points)"
    name = {"knn_top1": "top-1 by nearest neighbours"}.get(key, FIGURES[key].title)
    return Tile(numbers.percent(student[key]), f"{name} on the test split", detail)


def speed_tile(record: Record) -> Tile | None:
    """Builds the tile of the latency; None: nothing was timed."""
    result = headline_result(record)
    if result is None:
        return None
    latency = result["latency_ms"]
    where = f"{result['runtime']}, {words.threads(result['threads'])}, batch {result['batch']}"
    against = result["vs_baseline"]
    if against is None or against["name"] != "teacher":
        return Tile(numbers.milliseconds(latency["p50"]), "per call", where)
    ends = numbers.interval(against["ci95"])
    if against["verdict"] == "no difference":
        return Tile(
            numbers.times(against["ratio"]), "the teacher's speed: no difference shown", f"{ends}; {where}"
        )
    ratio = against["ratio"] if against["verdict"] == "faster" else 1 / against["ratio"]
    detail = f"{numbers.milliseconds(latency['p50'])} per call; {where}"
    return Tile(numbers.times(ratio), f"{against['verdict']} than the teacher", detail)


def gain_tile(record: Record) -> Tile | None:
    """Builds the tile of the gain by distillation; None: there is no baseline."""
    gain = record.results.get("gain")
    if gain is None:
        return None
    what = {
        "better": "points gained by distillation",
        "worse": "points: distillation did harm",
        "no difference shown": "points: no gain shown",
    }[gain["verdict"]]
    return Tile(numbers.points(gain["points"]), what, f"95 % interval {numbers.points_interval(gain)}")


def headline_result(record: Record) -> dict[str, Any] | None:
    """Returns the student's first timing, or None."""
    results = record.bench["results"] if record.bench else []
    return next((result for result in results if result["artefact"] == "student"), None)
