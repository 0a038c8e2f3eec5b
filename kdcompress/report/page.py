"""The report: one HTML file that needs nothing beside it, for whoever must decide on the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kdcompress import __version__
from kdcompress.atomic import write_text
from kdcompress.data.split_name import name_split
from kdcompress.plain_text import printable_value
from kdcompress.report import curves, numbers, quality_charts, tiles, words
from kdcompress.report.charts import Chart, Row, Style, dot_chart
from kdcompress.report.latency import latency_charts
from kdcompress.report.quality import (
    WEAKEST,
    ClassRow,
    Quality,
    ahead_sentence,
    badge,
    class_rows,
    ends_of,
    read_quality,
    score_rows,
)
from kdcompress.report.record import Record, read_run
from kdcompress.report.usage import preprocessing, snippets
from kdcompress.tasks.figures import comparable

NAME = "report.html"
MOST_TABLED = 50
"""Classes of the table by class."""
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
    write_text(path, name_split(page(record.with_marked_words()), record.test_name))
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
    spec, quality = record.input_spec, read_quality(record)
    context = {
        "style": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        "version": __version__,
        "name": record.recipe["name"],
        "sentence": words.sentence(record),
        **_answers(quality),
        **_quality(quality),
        "asked": words.recipe_rows(record),
        "networks_caption": words.split_sentence(record),
        "candidates_sentence": words.candidates_sentence(record.results),
        "pretraining_sentence": words.pretraining_sentence(record.results),
        "gain_sentence": words.gain_sentence(record),
        "curves": curves.charts(record),
        "bench": _bench(record),
        "gates": [_gate(gate) for gate in record.gates],
        "failed": record.failed_gates,
        "snippets": snippets(record),
        "preprocessing": preprocessing(spec) if spec else "",
        "provenance": words.provenance(record),
        "files": _files(record),
        "recipe_text": record.recipe_text,
        **networks(quality),
    }
    return environment.get_template("page.html.j2").render(context)


def networks(quality: Quality) -> dict[str, Any]:
    """Builds the table of networks: `network_columns`, and `networks` with (column, cell) pairs."""
    record = quality.record
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
        cells = [_with_interval(scores, figure.key, quality) for figure in compared]
        cells += [numbers.count(scores.get("params")), numbers.count(scores.get("macs"))]
        cells.append(numbers.megabytes(scores.get("bytes")))
        if timed:
            # The baseline is the student's network with other weights: it takes as long.
            cells.append(numbers.milliseconds(timed.get("student" if role == "baseline" else role)))
        note = "without distillation" if role == "baseline" else ""
        rows.append(
            {"role": role, "model": model, "note": note, "cells": list(zip(columns, cells, strict=True))}
        )
    largest = quality.largest
    if largest is not None and any(figure.key in largest for figure in compared):
        cells = [numbers.percent(largest.get(figure.key)) for figure in compared]
        cells += [numbers.UNKNOWN] * (len(columns) - len(cells))
        row = {"role": "always the largest class", "model": quality.name(largest["class"]), "note": ""}
        rows.append({**row, "cells": list(zip(columns, cells, strict=True))})
    return {"network_columns": columns, "networks": rows}


def _with_interval(scores: dict[str, Any], key: str, quality: Quality) -> str:
    ends = ends_of(scores, key, quality.counts)
    share = numbers.percent(scores.get(key))
    return share if ends is None else f"{share} ({numbers.percent_interval(ends)})"


def _answers(quality: Quality) -> dict[str, Any]:
    """Collects what the four answers above the fold say."""
    record = quality.record
    weakest = [row for row in class_rows(quality) if row.student < 1][:WEAKEST]
    return {
        "badge": badge(quality),
        "cautions": words.use_cautions(record.results, record.class_names),
        "accuracy": tiles.accuracy_tile(record),
        "scores": score_rows(quality),
        "ahead_sentence": ahead_sentence(quality),
        "confusion": quality_charts.confusion_chart(quality),
        "confusion_list": quality_charts.confusion_list(quality),
        "weakest": [
            {"name": row.name, "n": row.n, "right": row.right, "share": numbers.percent(row.student)}
            for row in weakest
        ],
        "gain": tiles.gain_tile(record),
        "gain_caution": words.gain_caution(record.results),
        "no_gain": words.no_gain(record),
        "speed": tiles.speed_tile(record),
        "size": tiles.size_tile(record),
        "target": words.target(record),
    }


def _quality(quality: Quality) -> dict[str, Any]:
    """Collects what the sections by class, on the threshold, the calibration and the mistakes say."""
    rows = class_rows(quality)
    shown = rows[:MOST_TABLED]
    roles = ["student"] + [
        role for role in ("teacher", "baseline") if any(getattr(row, role) is not None for row in rows)
    ]
    caption = "Top-1 of each class, the student's weakest first."
    if len(shown) < len(rows):
        caption = f"Top-1 of the {len(shown)} classes of {len(rows)} where the student is weakest."
    has_teacher = quality.record.teacher is not None
    return {
        "class_caption": caption,
        "class_columns": roles,
        "class_rows": [
            {
                "name": row.name,
                "n": numbers.UNKNOWN if row.n is None else numbers.figure(row.n),
                "cells": [(role, numbers.percent(getattr(row, role))) for role in roles],
            }
            for row in shown
        ],
        "classes": _by_class(rows),
        "two_classes": quality_charts.two_class_charts(quality),
        "threshold_sentences": quality_charts.threshold_sentences(quality),
        "calibration": quality_charts.calibration_chart(quality),
        "calibration_sentence": quality_charts.calibration_sentence(quality),
        "mistakes": quality_charts.mistake_cards(quality),
        "mistakes_sentence": (
            "Test images that the teacher classifies rightly and the student does not"
            if has_teacher
            else "Test images that the student classifies wrongly"
        )
        + ", the largest loss first, as the network sees them; the percentage is the student's own.",
    }


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


def _by_class(rows: Sequence[ClassRow]) -> Chart | None:
    """Draws student and teacher accuracy by class, weakest first; None without classes."""
    weakest = rows[:MOST_CLASSES]
    if not weakest:
        return None  # a backbone, whatever classes its teacher knows
    drawn = []
    for row in weakest:
        values = [(100 * row.student, 0)] + ([] if row.teacher is None else [(100 * row.teacher, 1)])
        drawn.append(Row(words.shortened(row.name, 40), values, note=numbers.percent(row.student)))
    title = (
        "Top-1 by class"
        if len(rows) == len(weakest)
        else f"The {len(weakest)} weakest of {len(rows)} classes"
    )
    legend: list[tuple[str, int, Style]] = [("student", 0, "dot")]
    if any(row.teacher is not None for row in weakest):
        legend.append(("teacher", 1, "dot"))
    return dot_chart(
        drawn,
        key="classes",
        title=title,
        x_label="top-1, % of the class's images",
        highest=100,
        legend=legend,
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
