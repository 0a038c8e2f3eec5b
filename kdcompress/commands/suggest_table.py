"""Formats the document of `suggest` for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdcompress.bench import stats

_STYLES = {"fits": "green", "does not fit": "red", "undecided": "yellow"}
WIDE = 120
"""Columns of a terminal that has room for all figures; a narrower one gets those that decide."""


def print_suggestion(document: dict[str, Any], console: Console) -> None:
    """Prints the candidates from the largest to the smallest, and under them the answer.

    Args:
        document: A document of schema `kdcompress.suggest/1`.
        console: The terminal.
    """
    lines = (Text(line) for line in footer(document))
    console.print(Group(Text(heading(document)), _table(document, console.width), *lines))


def heading(document: dict[str, Any]) -> str:
    """Formats the budget and the input of the students.

    Args:
        document: A document of schema `kdcompress.suggest/1`.
    """
    budget, protocol, images = document["budget"], document["protocol"], document["input"]
    shape = f"{images['channels']}×{images['height']}×{images['width']}"
    classes = f"{document['classes']:,} classes" if document["classes"] else "no classifier"
    if document["classes_from"] == "default":
        classes += " (assumed; --classes)"
    limits = [f"{budget['latency_ms']:g} ms for a median call of {_count(protocol['batch'], 'image')}"]
    if budget["file_mb"] is not None:
        limits.append(f"file at most {budget['file_mb']:g} MB")
    if budget["ram_mb"] is not None:
        limits.append(f"memory at most {budget['ram_mb']:g} MB")
    return f"Budget: {', '.join(limits)}. {shape}, {classes}, {_count(protocol['threads'], 'thread')}."


def footer(document: dict[str, Any]) -> list[str]:
    """Formats the lines about the device, the warnings and the answer.

    Args:
        document: A document of schema `kdcompress.suggest/1`.
    """
    lines = []
    env, rows = document["env"], document["results"]
    if env is not None:
        where = "here" if document["target"]["kind"] == "local" else f"on {document['target'].get('host')}"
        runtime = document["protocol"]["runtime"]
        named = f"{runtime} {env['runtimes'].get(runtime, '')}".strip()
        lines.append(f"Measured {where}: {env['cpu']}; {named}; untrained float32 files.")
    if document["left_out"]:
        named = ", ".join(entry["student"] for entry in document["left_out"])
        lines.append(f"Left out, since no smaller than the teacher: {named}.")
    if any(row["first_look_only"] for row in rows):
        lines.append("* Far too slow at a first look, so not timed in full.")
    if any(row["imagenet_top1"] for row in rows):
        lines.append(
            "ImageNet top-1 is published, of pretrained weights at their own size; yours will differ."
        )
    # What a benchmark's warnings advise is of ratios, and here are none; a later look says the same with
    # other figures.
    warnings = [warning.partition(": trust")[0] for warning in document["warnings"]]
    lines += [f"warning: {text}" for text in {text.partition(" (")[0]: text for text in warnings}.values()]
    if document["quality"] == "noisy":
        lines.append("warning: other work makes calls longer, never shorter: on a quiet machine more may fit")
    uneven = {row["student"]: row["noise"]["round_spread"] for row in rows if _is_uneven(row)}
    if uneven:
        timed = sum(row["latency_ms"] is not None and not row["first_look_only"] for row in rows)
        named = "all" if len(uneven) == timed > 1 else ", ".join(uneven)
        lines.append(f"warning: rounds up to {max(uneven.values()):g}x apart: {named}")
    repeated = [
        row["student"] for row in rows if row["channels"] not in (None, document["input"]["channels"])
    ]
    if repeated:
        lines.append(f"Grey images are repeated on three channels for {', '.join(repeated)}.")
    lines += [f"not timed: {row['student']}: {row['problem']}" for row in rows if row["problem"]]
    answer = document["answer"]
    if answer is None:
        return lines
    student = next(row for row in rows if row["student"] == answer["student"])
    figures = f"{student['params'] / 1e6:.3g} M parameters, {_latency(student)} ms"
    lines += ["", f"The largest that fits, by parameters: {answer['student']} ({figures})"]
    if student is next(row for row in rows if row["params"]) and len(rows) > 1:
        lines.append("  It is the largest of all that were tried: --students can name larger ones.")
    best = document["most_accurate"]
    if best is not None and best != answer["student"]:
        row = next(row for row in rows if row["student"] == best)
        top1 = f"{100 * row['imagenet_top1']['top1']:.1f} %"
        lines.append(f"  By published ImageNet top-1 the best that fits is {best} ({top1}).")
    limit = document["budget"]["file_mb"]
    if limit is not None and document["budget"]["ram_mb"] is None and student["ram_mb"] > limit:
        lines.append(
            f"  Running it takes {student['ram_mb']:.0f} MB of memory; --memory is about the file, "
            "--peak-memory limits this."
        )
    lines += [f"  in a recipe:        {answer['recipe']}", f"  on a command line:  {answer['set']}"]
    if document["recipe"] is not None:
        lines.append(f"  written:            {document['recipe']}")
    return lines


def _table(document: dict[str, Any], width: int) -> RenderableType:
    rows = document["results"]
    # (heading, whether it is left out of a narrow terminal, the cell of a row)
    columns: list[tuple[str, bool, Callable[[dict[str, Any]], str]]] = [
        ("params\nM", False, lambda row: _number(row["params"], 1e6)),
        ("GMACs", True, lambda row: _number(row["macs"], 1e9)),
        ("file\nMB", False, lambda row: _number(row["bytes"], 1e6)),
        ("memory\nMB", False, lambda row: "-" if row["ram_mb"] is None else f"{row['ram_mb']:.0f}"),
        ("p50 ms\n(95 %)", False, _timed),
        ("p90", True, _p90),
    ]
    if any(row["imagenet_top1"] for row in rows):
        columns.append(("ImageNet\ntop-1", True, _top1))
    columns = [column for column in columns if width >= WIDE or not column[1]]
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("student", overflow="fold")
    for heading, *_ in columns:
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("")
    for row in rows:
        verdict = row["verdict"] or "not timed"
        text = f"{verdict}: {', '.join(row['why'])}" if row["why"] else verdict
        cells = [cell(row) for _, _, cell in columns]
        grid.add_row(row["student"], *cells, Text(text, style=_STYLES.get(verdict, "")))
    return grid


def _timed(row: dict[str, Any]) -> str:
    if row["latency_ms"] is None:
        return "-"
    return _latency(row) + ("*" if row["first_look_only"] else "")


def _p90(row: dict[str, Any]) -> str:
    latency = row["latency_ms"]
    return "-" if latency is None else "n/a" if latency["p90"] is None else f"{latency['p90']:.3g}"


def _top1(row: dict[str, Any]) -> str:
    published = row["imagenet_top1"]
    return "-" if published is None else f"{100 * published['top1']:.1f} %"


def _latency(row: dict[str, Any]) -> str:
    latency = row["latency_ms"]
    ends = latency["ci95"]
    between = "[n/a]" if ends is None else f"[{ends[0]:.3g}, {ends[1]:.3g}]"
    return f"{latency['p50']:.3g} {between}"


def _is_uneven(row: dict[str, Any]) -> bool:
    """Tells if its rounds differ more than on a quiet machine."""
    noise = row["noise"]
    return (noise is not None and not row["first_look_only"]) and (
        noise["bimodal"] or noise["round_spread"] > stats.MODE_RATIO
    )


def _number(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.3g}"


def _count(number: int | str, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
