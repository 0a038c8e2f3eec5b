"""The figures that networks are compared by: one ordered table of names, titles and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a network on a split.

    Args:
        key: Its name in `results.json` and in the log.
        title: Heading of a table's column.
        short: Heading on a terminal.
        chart: Title of its chart.
        axis: The chart's y axis.
        unit: "%" (the figure itself is a share, 0 to 1) or "nats".
        higher_is_better: True if a larger figure is better.
        decides: True if checkpoints can be selected by it.
    """

    key: str
    title: str
    short: str
    chart: str = ""
    axis: str = ""
    unit: str = "%"
    higher_is_better: bool = True
    decides: bool = False


FIGURES: dict[str, Figure] = {
    figure.key: figure
    for figure in (
        Figure("top1", "top-1", "top-1", "Accuracy", "top-1 on held-out images, %", decides=True),
        Figure(
            "balanced_top1", "balanced top-1", "balanced top-1", "Balanced accuracy",
            "balanced top-1 on held-out images, %",
        ),
        Figure(
            "knn_top1", "kNN top-1", "kNN top-1", "Nearest neighbours",
            "top-1 by nearest neighbours on held-out images, %", decides=True,
        ),
        Figure(
            "nmi", "mutual information with the classes", "NMI", "Clusters and classes",
            "normalised mutual information on held-out images, %",
        ),
        Figure(
            "cluster_accuracy", "accuracy of clusters", "clusters", "Clusters and classes",
            "accuracy of the best matching on held-out images, %", decides=True,
        ),
        Figure(
            "agreement", "agreement with the teacher", "agreement", "Agreement with the teacher",
            "agreement on held-out images, %", decides=True,
        ),
        Figure("loss", "cross-entropy", "loss", unit="nats", higher_is_better=False),
        Figure("kl", "divergence from the teacher", "divergence", unit="nats", higher_is_better=False),
    )
}  # fmt: skip
"""In the order of preference: the first one that is known stands for a network."""

DECIDING = tuple(key for key, figure in FIGURES.items() if figure.decides)
"""Figures that a checkpoint is selected by: the first of them that a score has."""


def selection_metric(score: Mapping[str, Any]) -> str | None:
    """Returns the name of the figure that a checkpoint is selected by, or None if the score has none.

    Where classes are unequal, a score says itself that it is the balanced top-1.
    """
    own = score.get("decides")
    return own or next((key for key in DECIDING if score.get(key) is not None), None)


def comparable(student: Mapping[str, Any]) -> list[Figure]:
    """Lists the figures that a run's networks are compared by.

    Args:
        student: Figures of the student; those that are known of it decide.
    """
    if student["top1"] is not None:
        both = [FIGURES["top1"], FIGURES["balanced_top1"]]
        return both[::-1] if selection_metric(student) == "balanced_top1" else both
    return [
        FIGURES[key]
        for key in ("knn_top1", "cluster_accuracy", "nmi", "agreement")
        if student.get(key) is not None
    ]
