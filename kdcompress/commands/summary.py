"""The result table that `distill` prints at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kdcompress.data.split_name import TEST, keep_words, name_split
from kdcompress.documents import read_document
from kdcompress.plain_text import printable
from kdcompress.report.words import candidates_sentence, cautions, pretraining_sentence
from kdcompress.schemas.bench import Bench
from kdcompress.schemas.config import Labels
from kdcompress.schemas.run import Gates, Manifest
from kdcompress.tasks.figures import FIGURES, comparable


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Prints the results of a run, or of several seeds, to stdout.

    Args:
        summary: The results document, without control characters.
        folder: The run folder.
    """
    # A path that is broken in two can be neither read nor clicked.
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    if summary["schema"].startswith("kdcompress.seeds"):
        _print_seeds(summary, console)
    else:
        _print_run(summary, folder, console)


def _print_run(summary: dict[str, Any], folder: Path, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    # One figure: more columns would not leave the file's name its room on a narrow terminal.
    compared = comparable(summary["student"])[:1]
    scored, figures = [figure.key for figure in compared], [f"{figure.short} %" for figure in compared]
    for heading in ("", *figures, "parameters", "MACs", "latency ms", "file"):
        table.add_column(heading, justify="left" if heading in {"", "file"} else "right")
    latency, split = _latencies(folder), _test_name(folder)
    rows = {"student": summary["student"], "teacher": summary["teacher"], "baseline": summary["baseline"]}
    for name, row in rows.items():
        if row is not None:
            file = row.get("file", "") if name == "student" else ""
            table.add_row(
                name,
                *(_percent(row.get(key)) for key in scored),
                f"{row['params']:,}",
                f"{row['macs']:,}",
                latency.get(name, ""),
                file,
            )
    same = summary["student"]
    others = {f"student ({key})": {**same, **entry} for key, entry in (summary.get("variants") or {}).items()}
    if summary.get("ensemble"):
        others["ensemble"] = summary["ensemble"]
    others |= {entry["name"]: entry for entry in (summary.get("exits") or {}).get("exits", [])}
    for name, row in others.items():
        table.add_row(
            name,
            *(_percent(row.get(key)) for key in scored),
            *(f"{row[key]:,}" if row.get(key) is not None else "" for key in ("params", "macs")),
            latency.get(name, ""),
            row.get("file", ""),
        )
    console.print(table)
    for sentence in (name_split(pretraining_sentence(summary), split), candidates_sentence(summary)):
        if sentence:
            console.print(sentence)
    if summary.get("ensemble"):
        console.print(summary["ensemble"]["sentence"])
    if summary["gain"] is not None:
        gain = summary["gain"]
        low, high = gain["ci95"]
        console.print(
            f"Against the baseline: {gain['points']:+.2f} points "
            f"(95 % interval {low:+.2f} to {high:+.2f}): {gain['verdict']} with this seed"
        )
    labels = folder / "labels.json"
    names = read_document(labels, Labels) if labels.is_file() else []
    for caution in cautions(summary, keep_words(names)):
        console.print(printable(name_split(caution, split)))
    for entry in (summary.get("variants") or {}).values():
        console.print(entry["verdict"]["sentence"])
        if entry.get("qat"):
            console.print(entry["qat"]["sentence"])
    gates = read_document(folder / "gates.json", Gates)["gates"]
    passed = sum(gate["passed"] for gate in gates)
    shown = Path(printable(folder))
    console.print(
        f"{passed} of {len(gates)} gates passed. Files and report: {shown}/ (open {shown / 'report.html'})"
    )


def _test_name(folder: Path) -> str:
    """Reads the name of the test split: that of the folder that it was read from."""
    file = folder / "manifest.json"
    data = (read_document(file, Manifest).get("data") or {}) if file.is_file() else {}
    return str(data.get("test_split", TEST))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _print_seeds(summary: dict[str, Any], console: Console) -> None:
    figure = summary["figure"]
    if figure is None:
        console.print("Nothing scores the students: the data has no labels, and there is no teacher.")
    for who in ("student", "baseline"):
        row = summary[who]
        if row is not None and figure is not None:
            sd = "" if row["sd"] is None else f" ± {100 * row['sd']:.2f} (sd)"
            values = ", ".join(f"{100 * value:.2f}" for value in row[figure])
            mean = f"{who:<9} {FIGURES[figure].short} {100 * row['mean']:.2f} %{sd}"
            console.print(f"{mean} over {summary['seeds']} seeds: {values}")
    if summary["gain"] is not None:
        gain = summary["gain"]
        text = f"gain      {gain['mean']:+.2f} points"
        if "ci95" in gain:
            low, high = gain["ci95"]
            text += f" (95 % interval {low:+.2f} to {high:+.2f}, paired by seed): {gain['verdict']}"
        console.print(text)
    for caution in summary["cautions"]:
        console.print(caution)
    console.print(f"Runs: {summary['folder']}/seeds/")
    if summary.get("page"):
        console.print(f"Compared on one page: {summary['page']}")


def _latencies(folder: Path) -> dict[str, str]:
    """Reads the median latency of the ONNX files at batch 1 on the first thread count timed."""
    file = folder / "bench.json"
    if not file.exists():
        return {}
    latencies: dict[str, str] = {}
    for row in read_document(file, Bench)["results"]:
        if row["runtime"] == "onnxruntime":
            latencies.setdefault(row["artefact"], f"{row['latency_ms']['p50']:.3f}")
    return latencies
