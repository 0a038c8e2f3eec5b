"""The picture of a choice: accuracy over latency, the area of a dot by the size of the file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from kdcompress.report import numbers
from kdcompress.report.charts import Chart, Frame, Style, frame

SMALLEST, LARGEST = 4.0, 11.0
"""Radii of the dots."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One network that could be taken.

    Args:
        name: In the legend.
        ms: Median time of a call.
        percent: Accuracy.
        size: Bytes of its file.
    """

    name: str
    ms: float
    percent: float
    size: int


def front(choices: Sequence[Choice]) -> list[Choice]:
    """Returns the choices that no other beats, by being as good in all three and better in one.

    Args:
        choices: Any number.
    """

    def beats(one: Choice, other: Choice) -> bool:
        ours, theirs = (-one.percent, one.ms, one.size), (-other.percent, other.ms, other.size)
        return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))

    return [choice for choice in choices if not any(beats(other, choice) for other in choices)]


def pareto_chart(choices: Sequence[Choice], *, key: str, y_label: str, colours: int) -> Chart:
    """Draws the choices; those that no other beats are filled, and a line joins them.

    Args:
        choices: At least one.
        key: Unique on the page.
        y_label: The accuracy, with its unit.
        colours: Number of colours that can be told apart; later choices repeat them.
    """
    area = frame(
        _with_margin([choice.ms for choice in choices]),
        _with_margin([choice.percent for choice in choices]),
        x_label="median time of a call, ms; the area of a dot is the size of the file",
    )
    best = sorted(front(choices), key=lambda choice: (choice.ms, choice.percent))
    parts = list(area.parts)
    line = " ".join(f"{area.x_at(choice.ms):.1f},{area.y_at(choice.percent):.1f}" for choice in best)
    parts.append(Markup('<polyline class="front" points="{}"/>').format(line))
    largest = max(choice.size for choice in choices)
    # The largest first, so that none is hidden behind another.
    for number, choice in sorted(enumerate(choices), key=lambda item: -item[1].size):
        parts.append(_mark(area, choice, number % colours, largest, choice in best))
    told = "; ".join(
        f"{choice.name}: {choice.percent:.2f} %, {numbers.milliseconds(choice.ms)}, "
        f"{numbers.megabytes(choice.size)}" + (", not beaten" if choice in best else "")
        for choice in choices
    )
    legend: list[tuple[str, int, Style]] = [
        (choice.name, number % colours, "dot") for number, choice in enumerate(choices)
    ]
    title = "Accuracy, time and size"
    return Chart(area.svg(key, f"{title}: {y_label}", told, parts), title, y_label, legend)


def _with_margin(values: Sequence[float]) -> list[float]:
    """Adds a value at either end, so that no dot lies on an axis."""
    margin = 0.1 * (max(values) - min(values))
    return [min(values) - margin, *values, max(values) + margin]


def _mark(area: Frame, choice: Choice, colour: int, largest: int, best: bool) -> Markup:
    radius = SMALLEST + (LARGEST - SMALLEST) * math.sqrt(choice.size / largest)
    circle = Markup('<circle class="{} c{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>')
    return circle.format(
        "dot" if best else "hollow", colour, area.x_at(choice.ms), area.y_at(choice.percent), radius,
        escape(choice.name),
    )  # fmt: skip
