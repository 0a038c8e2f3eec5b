"""A benchmark document as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

_STYLES = {"faster": "green", "slower": "red", "no difference": ""}


def print_table(document: dict[str, Any], console: Console) -> None:
    """Prints a document's results, and under them what they hold for.

    Args:
        document: Of schema `kdcompress.bench/1`.
        console: Where to.
    """
    console.print(table(document))


def table(document: dict[str, Any]) -> RenderableType:
    """The results, one line per artefact, runtime, thread count and batch, with a footer.

    Args:
        document: Of schema `kdcompress.bench/1`.
    """
    results, artefacts = document["results"], document["artefacts"]
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    has_baseline = any(result["vs_baseline"] for result in results)
    for name in ("artefact", "runtime"):
        grid.add_column(name, overflow="fold")
    for name in ("thr", "batch", "p50 ms (95 %)", "p90", *(["vs baseline (95 %)"] if has_baseline else [])):
        grid.add_column(name, justify="right")
    for name in ("MB", "GMACs", "peak MB"):
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
        macs = artefact["macs"]
        cells += [
            f"{artefact['bytes'] / 1e6:.3g}",
            "" if macs is None else f"{macs / 1e9:.3g}",
            f"{result['rss_mb']['peak']:.0f}",
        ]
        grid.add_row(*cells)
    return Group(grid, *(Text(line) for line in footer(document)))


def footer(document: dict[str, Any]) -> list[str]:
    """What the figures hold for, in lines: machine, versions, control, warnings, failures.

    Args:
        document: Of schema `kdcompress.bench/1`.
    """
    env, aa = document["env"], document["aa"]
    versions = ", ".join(f"{name} {version}" for name, version in env["runtimes"].items())
    lines = [f"{env['cpu']}, {env['granted_cores']} of {env['logical_cores']} cores; {versions}"]
    if aa is not None:
        lines.append(
            f"A/A control (the same file twice): {aa['ratio']:.2f}x {_interval(aa['ci95'])}; "
            f"quality: {document['quality']}"
        )
    lines += [f"warning: {warning}" for warning in document["warnings"]]
    for result in document["results"]:
        where = "{artefact} ({runtime}, threads {threads}, batch {batch})".format_map(result)
        lines += [f"warning: {where}: {warning}" for warning in result["warnings"]]
    for failure in document["failures"]:
        where = f"{failure['artefact']} ({failure['runtime']}, threads {failure['threads']})"
        lines.append(f"failed: {where} at {failure['stage']}: {failure['type']}: {failure['message']}")
    return lines


def _against(comparison: dict[str, Any] | None) -> Text:
    if comparison is None:
        return Text("-")
    words = f"{comparison['ratio']:.2f}x {_interval(comparison['ci95'])} {comparison['verdict']}"
    return Text(words, style=_STYLES[comparison["verdict"]])


def _interval(ends: list[float] | None) -> str:
    return "[n/a]" if ends is None else f"[{ends[0]:.3g}, {ends[1]:.3g}]"
