"""Several runs side by side: what they were asked, what they reached, and whether the difference is one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kdcompress import __version__
from kdcompress.atomic import write_text
from kdcompress.data.split_name import TEST, keep_words, name_split
from kdcompress.plain_text import printable_value
from kdcompress.report import numbers, tiles, words
from kdcompress.report.charts import Chart, Line, Row, line_chart
from kdcompress.report.charts import dot_chart as draw_dots
from kdcompress.report.pareto import Choice, pareto_chart
from kdcompress.report.record import Record
from kdcompress.tasks.figures import comparable

SCHEMA = "kdcompress.comparison/1"
COLOURS = 6
"""Curves that can be told apart; of more runs the first are drawn."""

_HERE = Path(__file__).parent
_Z = 1.959963984540054
_OF_ITS_OWN = {"name", "seed"}
"""Of a recipe; that they differ says nothing."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One row: a run, or the same run with several seeds.

    Args:
        name: Unique among the rows.
        records: A run each, at least one.
        difference: To the row it is compared with: `{points, ci95, verdict}` of one run each on the same test
            images, with `sd` and `n` of several seeds each, paired by seed; None for a row that others are
            compared with, and where `why_not` says why there is none.
        why_not: Empty where there is a difference, and for a row that others are compared with.
        p50_ms: Median time of a call, measured together with the other rows; None: only in the run's own
            benchmark.
        incomplete: True if some of its runs did not ship.
    """

    name: str
    records: tuple[Record, ...]
    difference: dict[str, Any] | None = None
    why_not: str = ""
    p50_ms: float | None = None
    incomplete: bool = False

    @property
    def first(self) -> Record:
        """The run whose network, recipe and timing stand for the row."""
        return self.records[0]

    def shares(self, key: str) -> list[float]:
        """Returns one figure of each seed, as far as it is known."""
        values = [record.results["student"].get(key) for record in self.records]
        return [share for share in values if share is not None]


def figure_of(rows: Sequence[Compared]) -> tuple[str, str]:
    """Returns the figure that all runs have, as (heading, key in `results.json`).

    Raises:
        ValueError: They have no figure in common.
    """
    known = [comparable(row.first.results["student"]) for row in rows]
    for figure in known[0]:
        if all(figure in others for others in known):
            return figure.title, figure.key
    raise ValueError("the runs have no figure in common")


def document(rows: Sequence[Compared], reference: str | None = None) -> dict[str, Any]:
    """Returns the comparison as a document.

    Args:
        rows: At least one, with a figure in common.
        reference: What differences are to; None: the first row.
    """
    _, key = figure_of(rows)
    return {
        "schema": SCHEMA,
        "figure": key,
        "reference": reference or rows[0].name,
        "runs": [_entry(row, key) for row in rows],
        "differing": differing(rows),
    }


def differing(rows: Sequence[Compared]) -> dict[str, list[Any]]:
    """Returns the recipe values that differ between rows, by dotted key: one value per row.

    Args:
        rows: The runs; of several seeds the first counts.
    """
    flat = [dict(_flat(row.first.recipe)) for row in rows]
    keys = dict.fromkeys(key for values in flat for key in values)
    by_key = {key: [values.get(key) for values in flat] for key in keys if key not in _OF_ITS_OWN}
    return {key: values for key, values in by_key.items() if any(value != values[0] for value in values)}


def write_comparison(
    rows: Sequence[Compared],
    path: Path,
    *,
    reference: str | None = None,
    teachers: Sequence[dict[str, Any]] = (),
    failures: Sequence[str] = (),
    advice: Sequence[str] = (),
) -> None:
    """Writes the page; it needs nothing beside it.

    Args:
        rows: At least one, with a figure in common.
        path: Destination.
        reference: What differences are to, for the same student; None: the first row.
        teachers: How each teacher did that could be taken, as `kdcompress compare` found it.
        failures: A sentence for each run that did not ship.
        advice: Likely causes of a gain that is not shown, each with what to do.
    """
    loader = jinja2.FileSystemLoader(_HERE)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        finalize=printable_value,
    )
    reference = keep_words(reference)
    rows = [
        replace(row, name=keep_words(row.name), records=tuple(r.with_marked_words() for r in row.records))
        for row in rows
    ]
    heading, key = figure_of(rows)
    columns, table = _table(rows, heading, key, reference or rows[0].name)
    lead = f"Compared with {reference}, for the same student and the same seeds."
    context = {
        "style": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        "version": __version__,
        "names": [row.name for row in rows],
        "lead": lead if reference else f"The first, {rows[0].name}, is what the others are compared with.",
        "teachers": [_teacher(entry) for entry in teachers],
        "failures": list(failures),
        "columns": columns,
        "rows": table,
        "charts": list(_charts(rows, heading, key)),
        "notes": [*advice, *_notes(rows)],
        "differing": [
            (name, [_describe(value) for value in values]) for name, values in differing(rows).items()
        ],
    }
    names = {row.first.test_name for row in rows}
    text = environment.get_template("comparison.html.j2").render(context)
    write_text(path, name_split(text, names.pop() if len(names) == 1 else TEST))


def _entry(row: Compared, key: str) -> dict[str, Any]:
    student, shares = row.first.results["student"], row.shares(key)
    timing = tiles.headline_result(row.first)
    return {
        "name": row.name,
        "method": row.first.recipe["method"]["name"],
        "student": row.first.student,
        "teacher": row.first.teacher,
        "runs": len(row.records),
        key: shares,
        "mean": statistics.fmean(shares),
        "sd": statistics.stdev(shares) if len(shares) > 1 else None,
        "difference": row.difference,
        "why_not": row.why_not or None,
        "params": student.get("params"),
        "macs": student.get("macs"),
        "bytes": student.get("bytes"),
        "p50_ms": row.p50_ms or (timing and timing["latency_ms"]["p50"]),
        "seconds": row.first.seconds("student"),
    }


def _table(
    rows: Sequence[Compared], heading: str, key: str, reference: str
) -> tuple[list[str], list[tuple[Compared, str, list[tuple[str, str]]]]]:
    """Returns the columns, and for each row the run, its networks and (column, cell) pairs."""
    columns = [heading, f"against {words.shortened(reference, 24)}", "parameters", "MACs", "file"]
    columns += ["latency", "training"]
    table = []
    for row in rows:
        entry = _entry(row, key)
        taught = f" from {row.first.teacher}" if row.first.teacher else ""
        description = f"{entry['method']}: {entry['student']}{taught}"
        cells = [
            _share(entry),
            _difference(row),
            numbers.count(entry["params"]),
            numbers.count(entry["macs"]),
            numbers.megabytes(entry["bytes"]),
            numbers.milliseconds(entry["p50_ms"]),
            numbers.duration(entry["seconds"]),
        ]
        table.append((row, description, list(zip(columns, cells, strict=True))))
    return columns, table


def _share(entry: dict[str, Any]) -> str:
    if entry["sd"] is None:
        return f"{100 * entry['mean']:.2f} %"
    return f"{100 * entry['mean']:.2f} ± {100 * entry['sd']:.2f} % ({entry['runs']} seeds)"


def _difference(row: Compared) -> str:
    difference = row.difference
    if difference is None:
        return row.why_not or numbers.UNKNOWN
    points = f"{difference['points']:+.2f}".replace("-", "−")
    low, high = (f"{end:+.2f}".replace("-", "−") for end in difference["ci95"])
    told = f"{points} points ({low} to {high}): {difference['verdict']}"
    return told + (f", {difference['n']} pairs of seeds" if "n" in difference else "")


def _charts(rows: Sequence[Compared], heading: str, key: str) -> Iterator[Chart]:
    dots = []
    for row in rows:
        wrong = [100 * (1 - share) for share in row.shares(key)]
        single = len(wrong) == 1
        count = row.first.results["student"].get("n")
        ends = _wilson(wrong[0] / 100, count) if single and count and key == "top1" else None
        note = f"{statistics.fmean(wrong):.2f} %"
        label = words.shortened(row.name, 40)
        marks = [] if single else wrong
        dots.append(Row(label, [(statistics.fmean(wrong), 0)], interval=ends, note=note, marks=marks))
    error = "top-1 error" if key == "top1" else f"100 % less {heading}"
    choices = [_choice(row, key) for row in rows]
    if len(rows) > 1 and all(choices):
        placed = [choice for choice in choices if choice is not None]
        yield pareto_chart(placed, key="pareto", y_label=f"{heading}, %", colours=COLOURS)
    yield draw_dots(dots, key="errors", title="On the test split", x_label=f"{error}, % of the images")
    curves = []
    for colour, row in enumerate(rows[:COLOURS]):
        lines = [line for line in row.first.log if line["phase"].split("/")[0] == "student"]
        known = [(line["epoch"], (line.get("held_out") or {}).get(key)) for line in lines]
        points = [(epoch, 100 * share) for epoch, share in known if share is not None]
        if points:
            curves.append(Line(words.shortened(row.name, 30), points, colour, colour % 2 == 1))
    if curves:
        yield line_chart(
            curves,
            key="curves",
            title="While training",
            x_label="epochs trained",
            y_label=f"{heading} on held-out images, %",
        )


def _choice(row: Compared, key: str) -> Choice | None:
    """Returns the row for the picture of a choice; None if its time or its size is not known."""
    entry = _entry(row, key)
    if entry["p50_ms"] is None or entry["bytes"] is None:
        return None
    return Choice(words.shortened(row.name, 30), entry["p50_ms"], 100 * entry["mean"], entry["bytes"])


def _teacher(entry: dict[str, Any]) -> list[str]:
    """Returns a row of the table of teachers."""
    if entry["failed"] is not None:
        return [entry["teacher"], numbers.UNKNOWN, numbers.UNKNOWN, numbers.UNKNOWN, entry["failed"]]
    own = numbers.percent(entry["own_top1"])
    taught = f"{numbers.percent(entry['held_out'])} after {entry['epochs']} epochs"
    return [entry["teacher"], numbers.count(entry["params"]), own, taught, "taken" if entry["taken"] else ""]


def _notes(rows: Sequence[Compared]) -> Iterator[str]:
    if any(row.difference and "n" not in row.difference for row in rows):
        yield (
            "Differences are of one run each, on the same test images, with their 95 % intervals: these "
            "cover the choice of the images, not that of the seed. Repeat with --seeds to cover that too."
        )
    if any(row.difference and "n" in row.difference for row in rows):
        yield (
            "Differences of several seeds are paired by seed, with 95 % intervals by Student's t. ± is the "
            "standard deviation of a row's own seeds."
        )
    if all(row.p50_ms is not None for row in rows):
        yield "Latencies were measured together, on one file of each student: weights do not change the time."
    elif any(tiles.headline_result(row.first) for row in rows):
        yield (
            "Latencies were measured in a benchmark of each run's own, and may differ by what the machine "
            "was doing; kdcompress bench A/student.onnx B/student.onnx --baseline A/student.onnx times them "
            "together."
        )
    _, key = figure_of(rows)
    if len(rows) > 1 and all(_choice(row, key) for row in rows):
        yield (
            "In the picture of accuracy, time and size a filled dot is a row that no other beats: none is at "
            "least as good in all three and better in one. Its lead in accuracy may be chance: see the table."
        )
    if len(rows) > COLOURS:
        yield f"Curves are drawn of the first {COLOURS} runs."


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Computes the 95 % interval, in percent, of a share of so many images."""
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return 100 * (centre - half), 100 * (centre + half)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _describe(value: Any) -> str:
    if value is None:
        return numbers.UNKNOWN
    if isinstance(value, bool):
        return str(value).lower()
    return words.shortened(str(value), 60)
