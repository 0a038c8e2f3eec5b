"""Learning curves of a run: held-out accuracy of all that was trained, and each phase's loss terms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from kdcompress.report.charts import Chart, Line, line_chart
from kdcompress.report.record import Record
from kdcompress.tasks.figures import FIGURES

_ROLES = {"student": 0, "teacher": 1, "baseline": 2}


def charts(record: Record) -> list[Chart]:
    """Draws held-out accuracy, then one chart of loss terms per phase, as far as they were logged."""
    by_role: dict[str, list[dict[str, Any]]] = {}
    for line in record.log:
        by_role.setdefault(line["phase"].split("/")[0], []).append(line)
    drawn = []
    ordered = sorted(by_role, key=lambda role: _ROLES.get(role, 9))
    for figure in (figure for figure in FIGURES.values() if figure.chart):
        lines = [
            _line(role, _held_out(by_role[role], figure.key), _ROLES.get(role, 3), role != "student")
            for role in ordered
        ]
        lines = [line for line in lines if line.points]
        if lines:
            drawn.append(
                line_chart(
                    lines, key=figure.key, title=figure.chart, x_label="epochs trained", y_label=figure.axis
                )
            )
    for role in ordered:
        for phase in dict.fromkeys(line["phase"] for line in by_role[role]):
            chart = _losses(phase, [line for line in by_role[role] if line["phase"] == phase])
            drawn += [chart] if chart else []
    return drawn


def _losses(phase: str, lines: list[dict[str, Any]]) -> Chart | None:
    terms = list(dict.fromkeys(term for line in lines for term in line.get("losses") or {}))
    curves = []
    for number, term in enumerate(terms):
        values = [(line["epoch"], (line.get("losses") or {}).get(term)) for line in lines]
        curves.append(_line(term, values, (0, 2, 3, 4, 5, 1)[number % 6], number % 2 == 1))
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    return line_chart(
        curves,
        key=f"losses-{''.join(c if c.isalnum() else '-' for c in phase)}",
        title=f"Loss terms of the {phase}" if len(curves) > 1 else f"Loss of the {phase}: {curves[0].name}",
        x_label="epochs trained",
        y_label="weighted, mean of the epoch",
        from_zero=True,
    )


def _held_out(lines: list[dict[str, Any]], key: str) -> list[tuple[float, float | None]]:
    """Draws one share in percent, epoch by epoch."""
    points = []
    for line in lines:
        share = (line.get("held_out") or {}).get(key)
        points.append((line["epoch"], None if share is None else 100 * share))
    return points


def _line(name: str, points: Iterable[tuple[float, Any]], colour: int, dashed: bool) -> Line:
    known = [(x, float(y)) for x, y in points if isinstance(y, int | float) and math.isfinite(y)]
    return Line(name, known, colour, dashed)
