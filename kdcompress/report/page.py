"""The report: one HTML file that needs nothing beside it, for whoever must decide on the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kdcompress import __version__
from kdcompress.atomic import write_text
from kdcompress.data.split_name import name_split
from kdcompress.plain_text import printable_value
from kdcompress.report import curves, numbers, words
from kdcompress.report.charts import Chart, Row, Style, dot_chart
from kdcompress.report.latency import latency_charts
from kdcompress.report.record import Record, read_run
from kdcompress.report.usage import preprocessing, snippets
from kdcompress.tasks.figures import comparable

NAME = "report.html"
MOST_CLASSES = 12
"""Of a chart by class; with more, the weakest are shown."""

_HERE = Path(__file__).parent


def write_report(run: Path) -> Path:
    """Writes `report.html` into a run folder.

    Args:
        run: A run that has come to results; a benchmark, a baseline and a teacher may be absent.

    Returns:
        The file.

    Raises:
        UserError: It is no such run, or a file in it is damaged or from a newer kdcompress.
    """
    record = read_run(run)
    path = record.folder / NAME
    write_text(path, name_split(page(record), record.test_name))
    return path


def page(record: Record) -> str:
    """Builds the report as HTML."""
    loader = jinja2.FileSystemLoader(_HERE)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        finalize=printable_value,
    )
    spec = record.input_spec
    context = {
        "style": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        "version": __version__,
        "name": record.recipe["name"],
        "sentence": words.sentence(record),
        "tiles": words.tiles(record),
        "cautions": words.cautions(record.results, record.class_names),
        "asked": words.recipe_rows(record),
        "networks_caption": words.split_sentence(record),
        "candidates_sentence": words.candidates_sentence(record.results),
        "pretraining_sentence": words.pretraining_sentence(record.results),
        "gain_sentence": words.gain_sentence(record),
        "curves": curves.charts(record),
        "classes": _by_class(record),
        "bench": _bench(record),
        "gates": [_gate(gate) for gate in record.gates],
        "failed": record.failed_gates,
        "snippets": snippets(record),
        "preprocessing": preprocessing(spec) if spec else "",
        "provenance": words.provenance(record),
        "files": _files(record),
        "recipe_text": record.recipe_text,
        **networks(record),
    }
    return environment.get_template("page.html.j2").render(context)


def networks(record: Record) -> dict[str, Any]:
    """Builds the table of networks: `network_columns`, and `networks` with (column, cell) pairs."""
    results, bench = record.results, record.bench
    compared = comparable(results["student"])
    columns = [figure.title for figure in compared] + ["parameters", "MACs", "file"]
    timed = (
        {} if bench is None else {r["artefact"]: r["latency_ms"]["p50"] for r in reversed(bench["results"])}
    )
    if timed:
        columns.append("latency")
    rows = []
    models = {"teacher": record.teacher, "student": record.student, "baseline": record.student}
    for role, model in models.items():
        scores = results.get(role)
        if not scores:
            continue
        cells = [numbers.percent(scores.get(figure.key)) for figure in compared]
        cells += [numbers.count(scores.get("params")), numbers.count(scores.get("macs"))]
        cells.append(numbers.megabytes(scores.get("bytes")))
        if timed:
            # The baseline is the student's network with other weights: it takes as long.
            cells.append(numbers.milliseconds(timed.get("student" if role == "baseline" else role)))
        note = "without distillation" if role == "baseline" else ""
        rows.append(
            {"role": role, "model": model, "note": note, "cells": list(zip(columns, cells, strict=True))}
        )
    return {"network_columns": columns, "networks": rows}


def _bench(record: Record) -> dict[str, Any] | None:
    bench = record.bench
    if bench is None or not (bench["results"] or bench["failures"]):
        return None
    rows = [_bench_row(result, bench["protocol"].get("baseline")) for result in bench["results"]]
    return {
        "charts": latency_charts(bench["results"]),
        "rows": rows,
        "columns": [name for name, _ in rows[0]["cells"]] if rows else [],
        "notes": [*words.other_files(record), *words.bench_notes(bench)],
    }


def _bench_row(result: dict[str, Any], baseline: str | None) -> dict[str, Any]:
    latency, against = result["latency_ms"], result["vs_baseline"]
    ratio = numbers.UNKNOWN
    if against is not None:
        ratio = (
            f"{numbers.times(against['ratio'])} ({numbers.interval(against['ci95'])}) {against['verdict']}"
        )
        if against["name"] != baseline:
            ratio += f", {against['name']}"
    cells = [
        ("threads", str(result["threads"])),
        ("batch", str(result["batch"])),
        ("p50", numbers.milliseconds(latency["p50"])),
        ("95 % interval", numbers.interval(latency["ci95"])),
        ("p90", "n/a" if latency["p90"] is None else numbers.milliseconds(latency["p90"])),
        ("against the baseline", ratio),
        ("load", numbers.milliseconds(result["load_ms"])),
        ("first call", numbers.milliseconds(result["first_ms"])),
        ("peak memory", f"{result['rss_mb']['peak']:.0f} MB"),
    ]
    return {
        "artefact": f"{result['artefact']} {result['precision']}",
        "runtime": result["runtime"],
        "cells": cells,
    }


def _by_class(record: Record) -> Chart | None:
    """Builds the table of student and teacher accuracy by class, weakest first."""
    student = record.results["student"].get("per_class") or []
    if not student:
        return None  # a backbone, whatever classes its teacher knows
    teacher = (record.results.get("teacher") or {}).get("per_class") or [None] * len(student)
    names = record.class_names or [f"class {number}" for number in range(len(student))]
    scored = [row for row in zip(student, teacher, names, strict=True) if row[0] is not None]
    if not scored:
        return None
    weakest = sorted(scored, key=lambda row: row[0])[:MOST_CLASSES]
    rows = []
    for own, other, name in weakest:
        values = [(100 * own, 0)] if other is None else [(100 * own, 0), (100 * other, 1)]
        rows.append(Row(words.shortened(name, 40), values, note=numbers.percent(own)))
    title = (
        "Top-1 by class"
        if len(scored) == len(weakest)
        else f"The {len(weakest)} weakest of {len(scored)} classes"
    )
    legend: list[tuple[str, int, Style]] = [("student", 0, "dot")]
    if any(other is not None for _, other, _ in weakest):
        legend.append(("teacher", 1, "dot"))
    return dot_chart(
        rows, key="classes", title=title, x_label="top-1, % of the class's images", highest=100, legend=legend
    )


def _gate(gate: dict[str, Any]) -> dict[str, Any]:
    return {**gate, "figure": numbers.figure(gate["figure"]), "limit": numbers.figure(gate["limit"])}


def _files(record: Record) -> list[dict[str, str]]:
    files = record.manifest.get("files", {})
    return [
        {"name": name, "size": numbers.megabytes(entry["bytes"]), "sha256": entry["sha256"]}
        for name, entry in files.items()
        if name.startswith(("student", "labels", "config"))  # what ships; the rest of the folder describes it
    ]
