"""Charts as inline SVG: axes with units, labels readable on a phone, a title for screen readers.

Colours and fonts come from the page's style sheet (classes `c0` to `c5`), so a chart follows the light or
dark theme and prints in black on white. All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

WIDTH = 420
"""Of the drawing, in its own units; the page scales it to between 0.85 and 1.3 times that."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 42
_ROW = 30
_HEIGHT = 250


Style = Literal["solid", "dashed", "dot"]
"""Of a key in a legend."""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve.

    Args:
        name: In the legend.
        points: (x, y), x ascending.
        colour: 0 to 5.
        dashed: Told apart without colour.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a dot chart.

    Args:
        label: Above the line.
        values: (value, colour) of each dot.
        interval: (low, high) of the first dot, or None.
        note: At the right end of the label.
        marks: Values drawn small and faint below the others, in the first dot's colour.
    """

    label: str
    values: Sequence[tuple[float, int]]
    interval: tuple[float, float] | None = None
    note: str = ""
    marks: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing and the legend that belongs to it.

    Args:
        svg: To be put into the page as it is.
        title: Its heading.
        unit: Unit of the y axis, drawn horizontally above it; empty: none.
        legend: (name, colour, style); not shown if there is nothing to tell apart.
    """

    svg: Markup
    title: str
    unit: str = ""
    legend: Sequence[tuple[str, int, Style]] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """The axes of a chart, and where a value lies between them.

    Args:
        parts: Grid, ticks and labels, to be drawn first.
        x_at: Position of an x value.
        y_at: Position of a y value.
    """

    parts: Sequence[Markup]
    x_at: _Scale
    y_at: _Scale

    def svg(self, key: str, title: str, description: str, parts: Sequence[Markup]) -> Markup:
        """Returns the drawing.

        Args:
            key: Unique on the page; for the accessible title's id.
            title: What is drawn.
            description: What it shows, for screen readers.
            parts: Everything that is drawn, in order.
        """
        return svg_element(key, _HEIGHT, title, description, parts)


def frame(
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    x_label: str,
    whole_x: bool = False,
    from_zero: bool = False,
) -> Frame:
    """Draws the axes that hold some points.

    Args:
        xs: Their x values, at least one.
        ys: Their y values.
        x_label: With its unit.
        whole_x: True: the x axis has ticks at whole numbers only.
        from_zero: True: the y axis must begin at 0.
    """
    x_ticks = [tick for tick in ticks(min(xs), max(xs), 6) if not whole_x or tick == int(tick)]
    y_ticks = ticks(min(0, *ys) if from_zero else min(ys), max(ys), 5)
    ends = (min(xs), max(xs)) if whole_x else (x_ticks[0], x_ticks[-1])
    x_at = _Scale(*ends, _LEFT, WIDTH - _RIGHT)
    y_at = _Scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    bottom = _HEIGHT - _BOTTOM
    parts = []
    for tick in y_ticks:
        parts.append(_segment("grid", _LEFT, y_at(tick), WIDTH - _RIGHT, y_at(tick)))
        parts.append(text_element("tick end", _LEFT - 6, y_at(tick) + 4, _tick(tick, y_ticks)))
    for tick in x_ticks:
        if ends[0] <= tick <= ends[1]:
            parts.append(_segment("mark", x_at(tick), bottom, x_at(tick), bottom + 4))
            parts.append(text_element("tick middle", x_at(tick), bottom + 17, _tick(tick, x_ticks)))
    parts.append(_segment("axis", _LEFT, bottom, WIDTH - _RIGHT, bottom))
    parts.append(text_element("label middle", (_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label))
    return Frame(parts, x_at, y_at)


def line_chart(
    lines: Sequence[Line], *, key: str, title: str, x_label: str, y_label: str, from_zero: bool = False
) -> Chart:
    """Curves over a common x axis.

    Args:
        lines: At least one with a point.
        key: Unique on the page; for the accessible title's id.
        title: Title of the drawing.
        x_label: With its unit.
        y_label: With its unit.
        from_zero: True: the y axis must begin at 0.
    """
    area = frame(
        [x for line in lines for x, _ in line.points],
        [y for line in lines for _, y in line.points],
        x_label=x_label,
        whole_x=True,
        from_zero=from_zero,
    )
    x_at, y_at, parts = area.x_at, area.y_at, list(area.parts)
    for line in lines:
        drawn = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line.points)
        dashes = " dashed" if line.dashed else ""
        parts.append(Markup('<polyline class="line c{}{}" points="{}"/>').format(line.colour, dashes, drawn))
        if len(line.points) <= 12:  # few epochs: a point between two straight lines would be lost
            radius = 5 if len(line.points) == 1 else 2.6
            parts += [_dot(x_at(x), y_at(y), line.colour, radius) for x, y in line.points]
    ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3g}" for line in lines if line.points)
    svg = area.svg(key, f"{title}: {y_label} over {x_label}", ends, parts)
    legend = [(line.name, line.colour, _style(line)) for line in lines]
    return Chart(svg, title, y_label, legend)


def dot_chart(
    rows: Sequence[Row],
    *,
    key: str,
    title: str,
    x_label: str,
    highest: float | None = None,
    legend: Sequence[tuple[str, int, Style]] = (),
) -> Chart:
    """Values with their intervals on a common axis that begins at 0.

    Args:
        rows: At least one.
        key: Unique on the page.
        title: Title of the drawing.
        x_label: With its unit.
        highest: End of the axis; None: as the values need it.
        legend: (name, colour, style).
    """
    height = _TOP + _ROW * len(rows) + _BOTTOM
    left = 12
    reached = [value for row in rows for value, _ in row.values] + [
        row.interval[1] for row in rows if row.interval
    ]
    reached += [mark for row in rows for mark in row.marks]
    x_ticks = ticks(0, max(reached) if highest is None else highest, 5)
    x_at = _Scale(0, x_ticks[-1], left, WIDTH - 18)
    bottom = height - _BOTTOM
    parts = []
    for tick in x_ticks:
        parts.append(_segment("grid", x_at(tick), _TOP, x_at(tick), bottom))
        parts.append(text_element("tick middle", x_at(tick), bottom + 17, _tick(tick, x_ticks)))
    parts.append(_segment("axis", left, _TOP, left, bottom))
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number + 21
        first, colour = row.values[0]
        parts.append(text_element("row", left + 5, y - 8, row.label))
        parts.append(text_element("row end strong", WIDTH - 2, y - 8, row.note))
        parts.append(_segment(f"stem c{colour}", left, y, x_at(first), y))
        parts += [_dot(x_at(mark), y, colour, 2.5, "round") for mark in row.marks]
        if row.interval is not None:
            low, high = (x_at(end) for end in row.interval)
            parts.append(_segment(f"whisker c{colour}", low, y, high, y))
            parts += [_segment(f"whisker c{colour}", end, y - 4, end, y + 4) for end in (low, high)]
        parts += [_dot(x_at(value), y, shade, 4) for value, shade in reversed(row.values)]
    parts.append(text_element("label middle", (left + WIDTH) / 2, height - 6, x_label))
    svg = svg_element(
        key, height, f"{title}: {x_label}", "; ".join(f"{row.label}: {row.note}" for row in rows), parts
    )
    return Chart(svg, title, legend=legend)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Returns round numbers (1, 2 or 5 times a power of ten apart) that enclose a range.

    Args:
        low: Least value.
        high: Greatest value, not below `low`.
        about: Approximate number of ticks; at least 2 are returned.
    """
    if high - low < 1e-12 * max(abs(low), abs(high), 1):
        margin = abs(low) * 0.1 or 1.0  # a flat curve lies in the middle
        low, high = low - margin, high + margin
    raw = (high - low) / max(1, about - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _tick(value: float, among: Sequence[float]) -> str:
    step = abs(among[1] - among[0]) if len(among) > 1 else 1
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{decimals}f}".replace("-", "−")


def _style(line: Line) -> Style:
    if line.dashed:
        return "dashed"
    return "dot" if len(line.points) == 1 else "solid"


class _Scale:
    """A straight map of values onto positions."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.factor = (end - start) / (high - low) if high > low else 0.0
        self.offset = 0.0 if high > low else (end - start) / 2  # a single value lies in the middle

    def __call__(self, value: float) -> float:
        return self.start + self.offset + self.factor * (value - self.low)


def svg_element(key: str, height: float, title: str, description: str, parts: Sequence[Markup]) -> Markup:
    """Builds the `<svg>` element of a chart, with a title for screen readers."""
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{key}-t {key}-d">'
        '<title id="{key}-t">{title}</title><desc id="{key}-d">{description}</desc>{parts}</svg>'
    ).format(
        width=WIDTH,
        height=f"{height:g}",
        key=key,
        title=title,
        description=description,
        parts=Markup("").join(parts),
    )


def _segment(classes: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    coordinates = Markup('x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"').format(x1, y1, x2, y2)
    return Markup('<line class="{}" {}/>').format(classes, coordinates)


def _dot(x: float, y: float, colour: int, radius: float, kind: str = "dot") -> Markup:
    return Markup('<circle class="{} c{}" cx="{:.1f}" cy="{:.1f}" r="{:g}"/>').format(
        kind, colour, x, y, radius
    )


def text_element(classes: str, x: float, y: float, content: str) -> Markup:
    """Builds a `<text>` element."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(classes, x, y, escape(content))
