"""A benchmark as one picture file: the report's charts, standing alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kdcompress.report.charts import WIDTH, Chart
from kdcompress.report.latency import latency_charts
from kdcompress.report.raster import to_png

FORMATS = (".svg", ".png")

_STYLE_SHEET = Path(__file__).with_name("page.css")
_MARGIN, _LINE = 24, 17
_CHARACTERS = 78
"""That fit into a line of the picture."""


def plot(document: dict[str, Any], suffix: str) -> bytes:
    """Draws the latencies, one chart per thread count and batch size.

    Args:
        document: Document of schema `kdcompress.bench/1`, with at least one result.
        suffix: A key of `FORMATS`.

    Returns:
        The content of an SVG or a PNG file.
    """
    svg = _svg(document)
    return to_png(svg, _light_colours()) if suffix == ".png" else svg.encode("utf-8")


def _svg(document: dict[str, Any]) -> str:
    charts = latency_charts(document["results"])
    lines = _caption(document)
    y = float(_MARGIN + 6)
    parts = [_text("title", y, "Latency")]
    for line in lines:
        y += _LINE
        parts.append(_text("note", y, line))
    y += 14
    for chart in charts:
        y += 20
        parts.append(_text("title", y, chart.title))
        height, body = _body(chart)
        parts.append(Markup('<g transform="translate({},{:g})">{}</g>').format(_MARGIN, y + 4, body))
        y += height + 8
    size = (WIDTH + 2 * _MARGIN, y + _MARGIN / 2)
    described = Markup("<title>Latency</title><desc>{}</desc>").format(" ".join(lines))
    return str(
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {0:g} {1:g}" width="{0:g}" '
            'height="{1:g}" role="img">{2}<style>{3}</style><rect class="paper" width="100%" height="100%"/>'
            "{4}</svg>\n"
        ).format(*size, described, Markup(_style()), Markup("").join(parts))
    )


def _body(chart: Chart) -> tuple[float, Markup]:
    """Returns height and body of a chart's `<svg>`, without the title."""
    matched = re.fullmatch(
        r'<svg class="chart" viewBox="0 0 [\d.]+ ([\d.]+)"[^>]*><title.*?</title><desc.*?</desc>(.*)</svg>',
        str(chart.svg),
        re.DOTALL,
    )
    assert matched is not None
    return float(matched[1]), Markup(matched[2])


def _caption(document: dict[str, Any]) -> list[str]:
    env, control = document["env"], document["aa"]
    versions = ", ".join(f"{name} {version}" for name, version in env["runtimes"].items())
    lines = [
        f"{env['cpu']}, {env['granted_cores']} of {env['logical_cores']} cores; {versions}",
        f"{document['protocol']['rounds']} shuffled rounds, each a faint dot; quality: {document['quality']}",
    ]
    if control is not None and control["ci95"] is not None:
        low, high = control["ci95"]
        lines.append(f"A/A control: {control['artefact']} twice came out {low:.2f} to {high:.2f}× apart")
    return [line if len(line) <= _CHARACTERS else line[: _CHARACTERS - 1] + "…" for line in lines]


def _text(kind: str, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{:.1f}">{}</text>').format(kind, _MARGIN, y, text)


def _style() -> str:
    """Returns the report's style rules for charts, and a few for the page."""
    sheet = _STYLE_SHEET.read_text(encoding="utf-8")
    dark = r"@media \(prefers-color-scheme: dark\)"
    colours = re.findall(rf"^(?::root|{dark}) \{{.*?^\}}", sheet, re.M | re.S)
    rules = re.findall(r"^(?:svg\.chart [^\n]*|\.c\d \{[^\n]*|\.line, [^\n]*)$", sheet, re.M)
    own = [
        "svg.chart { font: 12px system-ui, sans-serif; }",
        "svg.chart .paper { fill: var(--paper); }",
        "svg.chart .title { fill: var(--ink); font-weight: 600; font-size: 14px; }",
        "svg.chart .note { font-size: 11px; }",
    ]
    return "\n".join(
        ["", *colours, *(rule for rule in rules if not rule.startswith("svg.chart {")), *own, ""]
    )


def _light_colours() -> dict[str, str]:
    """Returns the style sheet's light-mode colours by name, such as `c0`."""
    root = re.search(r"^:root \{(.*?)^\}", _STYLE_SHEET.read_text(encoding="utf-8"), re.M | re.S)
    assert root is not None
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", root[1]))
