"""Learning curves of a run: held-out accuracy of all that was trained, and each phase's loss terms."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from kdcompress.report.charts import Chart, Line, line_chart
from kdcompress.report.record import Record

_ROLES = {"student": 0, "teacher": 1, "baseline": 2}


def charts(record: Record) -> list[Chart]:
    """Held-out top-1 first, then one chart of loss terms per phase; what was not logged is left out."""
    by_role: dict[str, list[dict[str, Any]]] = {}
    for line in record.log:
        by_role.setdefault(line["phase"].split("/")[0], []).append(line)
    drawn = []
    ordered = sorted(by_role, key=lambda role: _ROLES.get(role, 9))
    top1 = [_line(role, _top1(by_role[role]), _ROLES.get(role, 3), role != "student") for role in ordered]
    top1 = [line for line in top1 if line.points]
    if top1:
        unit = "top-1 on held-out images, %"
        drawn.append(line_chart(top1, key="top1", title="Accuracy", x_label="epochs trained", y_label=unit))
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


def _top1(lines: list[dict[str, Any]]) -> list[tuple[float, float | None]]:
    found = []
    for line in lines:
        top1 = (line.get("held_out") or {}).get("top1")
        found.append((line["epoch"], None if top1 is None else 100 * top1))
    return found


def _line(name: str, points: Iterable[tuple[float, Any]], colour: int, dashed: bool) -> Line:
    known = [(x, float(y)) for x, y in points if isinstance(y, int | float) and math.isfinite(y)]
    return Line(name, known, colour, dashed)
