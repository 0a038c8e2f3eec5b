"""Formats a benchmark document as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdcompress.bench.compare import label_of
from kdcompress.bench.metrics import top1_of

_STYLES = {"faster": "green", "slower": "red", "no difference": ""}


def print_table(document: dict[str, Any], console: Console) -> None:
    """Prints a document's results, and under them the machine and the warnings.

    Args:
        document: A document of schema `kdcompress.bench/1`.
        console: The terminal.
    """
    console.print(table(document))


def table(document: dict[str, Any]) -> RenderableType:
    """Formats the results, one line per artefact, runtime, thread count and batch, with a footer.

    Args:
        document: A document of schema `kdcompress.bench/1`.
    """
    results, artefacts = document["results"], document["artefacts"]
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    has_baseline = any(result["vs_baseline"] for result in results)
    has_parity = any(_shows_classes(result) for result in results)
    has_top1 = any(top1_of(artefact) is not None for artefact in artefacts.values())
    for name in ("artefact", "runtime"):
        grid.add_column(name, overflow="fold")
    headings = ["thr", "batch", "p50 ms (95 %)", "p90", *(["vs baseline (95 %)"] if has_baseline else [])]
    headings += ["load ms", "first ms", "peak MB", "file MB", "GMACs"]
    headings += [*(["same class"] if has_parity else []), *(["top-1"] if has_top1 else [])]
    for name in headings:
        grid.add_column(name, justify="right")
    for result in results:
        artefact = artefacts[result["artefact"]]
        latency = result["latency_ms"]
        cells: list[str | Text] = [
            f"{result['artefact']} {result['precision']}",
            result["runtime"],
            str(result["threads"]),
            str(result["batch"]),
            f"{latency['p50']:.3g} {_interval(latency['ci95'])}",
            "n/a" if latency["p90"] is None else f"{latency['p90']:.3g}",
        ]
        if has_baseline:
            cells.append(_against(result["vs_baseline"]))
        size, macs = artefact.get("bytes"), artefact.get("macs")
        cells += [
            _short(result["load_ms"]),
            _short(result["first_ms"]),
            f"{result['rss_mb']['peak']:.0f}",
            "" if size is None else f"{size / 1e6:.3g}",
            "" if macs is None else f"{macs / 1e9:.3g}",
        ]
        if has_parity:
            same = result["parity"]["top1_agreement"] if _shows_classes(result) else None
            cells.append(_percent(same))
        if has_top1:
            cells.append(_percent(top1_of(artefact)))
        grid.add_row(*cells)
    parts: list[RenderableType] = [grid] if results else []
    if "compare" in document:
        parts.append(_changes(document["compare"]))
    return Group(*parts, *(Text(line) for line in footer(document)))


def _changes(compared: dict[str, Any]) -> RenderableType:
    """Formats the comparison with the document of --compare."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    grid.title = Text(f"since {compared['file']} ({compared['date_utc'] or 'date unknown'})", style="bold")
    for name in ("artefact", "runtime"):
        grid.add_column(name, overflow="fold")
    for name in ("thr", "batch", "old p50 ms", "new p50 ms", "old / new (95 %)", "by"):
        grid.add_column(name, justify="right")
    for row in compared["results"]:
        grid.add_row(
            f"{row['artefact']} {row['precision']}",
            row["runtime"],
            str(row["threads"]),
            str(row["batch"]),
            f"{row['old_ms']:.3g}",
            f"{row['new_ms']:.3g}",
            _against(row),
            row["by"],
        )
    return grid


def footer(document: dict[str, Any]) -> list[str]:
    """Formats the lines under the table: machine, versions, control, warnings, failures.

    Args:
        document: A document of schema `kdcompress.bench/1`.
    """
    env, aa = document["env"], document["aa"]
    versions = ", ".join(f"{name} {version}" for name, version in env["runtimes"].items())
    target = document.get("target") or {}
    where = {"ssh": f"on {target.get('host')}: ", "pack": "elsewhere: "}.get(target.get("kind", ""), "")
    lines = [f"{where}{env['cpu']}, {env['granted_cores']} of {env['logical_cores']} cores; {versions}"]
    if aa is not None:
        lines.append(
            f"A/A control (the same file twice): {aa['ratio']:.2f}x {_interval(aa['ci95'])}; "
            f"quality: {document['quality']}"
        )
    lines += [f"warning: {warning}" for warning in document["warnings"]]
    concerned: dict[str, list[str]] = {}
    for result in document["results"]:
        for warning in result["warnings"]:
            concerned.setdefault(warning, []).append(label_of(result))
    for warning, labels in concerned.items():
        everywhere = len(labels) == len(document["results"]) > 1
        lines.append(f"warning: {'all' if everywhere else ', '.join(labels)}: {warning}")
    if "compare" in document:
        compared = document["compare"]
        lines += [f"warning: compared with {compared['file']}: {text}" for text in compared["warnings"]]
        for key, what in (("only_new", "not in"), ("only_old", "only in")):
            if compared[key]:
                lines.append(f"{what} {compared['file']}: {', '.join(compared[key])}")
    for failure in document["failures"]:
        what = f"at {failure['stage']}: {failure['type']}: {failure['message']}"
        lines.append(f"failed: {label_of(failure)} {what}")
    return lines


def _shows_classes(result: dict[str, Any]) -> bool:
    """Returns True if the outputs were compared on real images: random noise has no right class."""
    return result.get("parity") is not None and result.get("images") != "noise"


def _against(comparison: dict[str, Any] | None) -> Text:
    if comparison is None:
        return Text("-")
    words = f"{comparison['ratio']:.2f}x {_interval(comparison['ci95'])} {comparison['verdict']}"
    return Text(words, style=_STYLES[comparison["verdict"]])


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _interval(ends: list[float] | None) -> str:
    return "[n/a]" if ends is None else f"[{ends[0]:.3g}, {ends[1]:.3g}]"
