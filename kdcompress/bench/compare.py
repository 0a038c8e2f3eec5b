"""`--compare`: two benchmark documents side by side, result by result."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kdcompress.bench import stats
from kdcompress.bench.results import SCHEMA, control_margin, rounded
from kdcompress.documents import check_document, parse_json, read_text
from kdcompress.errors import UserError
from kdcompress.schemas.bench import Bench

Key = tuple[str, str, str, int, int]
"""The fields that pair two results: artefact, runtime, precision, threads, batch."""

_MACHINE = {
    "cpu": "processor",
    "machine": "architecture",
    "granted_cores": "number of cores",
    "governor": "CPU governor",
    "turbo": "turbo setting",
    "on_battery": "power source (battery)",
    "kernel": "kernel",
    "os": "operating system",
}
_PROTOCOL = {"block_s": "seconds per round", "turns": "turns per round", "rounds": "rounds"}


def key_of(result: dict[str, Any]) -> Key:
    """Gives the key that pairs a result with one of another document."""
    return tuple(result[key] for key in ("artefact", "runtime", "precision", "threads", "batch"))


def label_of(result: dict[str, Any]) -> str:
    """Names a result or a failure in a sentence."""
    named = {"precision": "", "threads": 1, "batch": 1, **result}  # failures of earlier versions lack these
    return "{artefact} ({runtime} {precision}, threads {threads}, batch {batch})".format_map(named)


def read_document(path: Path) -> dict[str, Any]:
    """Reads a benchmark document of this or an earlier version.

    Raises:
        UserError: There is none, or it is of a newer version.
    """
    advice = "expected what `bench --out` wrote, or a run's bench.json"
    document = parse_json(read_text(path), str(path), advice=advice)
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        is_other_version = re.fullmatch(r"kdcompress\.bench/\d+", str(schema))
        why = (
            f"this version of kdcompress reads {SCHEMA!r}"
            if is_other_version
            else "it is no benchmark document"
        )
        raise UserError(f"{path}: schema {schema!r}; {why}")
    missing = {"env", "artefacts", "results", "protocol"} - set(document)
    if missing:
        raise UserError(f"{path}: lacks {', '.join(sorted(missing))}")
    check_document(document, str(path), Bench, advice=advice)
    return dict(document)


def compare(new: dict[str, Any], old: dict[str, Any], name: str) -> dict[str, Any]:
    """Compares each result with the one of the same settings in an earlier document.

    A machine's speed changes from hour to hour without a visible reason. If both results were timed against
    the same baseline, their paired ratios to it are compared, in which that cancels; else the times
    themselves, whose interval covers only the variation within each session.

    Args:
        new: The present document.
        old: The earlier document.
        name: Name of its file.

    Returns:
        `{file, date_utc, another_machine, warnings, results, only_new, only_old}`. `another_machine` lists
        differences of the machine and the versions; `warnings` lists these and all others. Each result has
        its key, the two medians in ms, `ratio` (old / new: above 1 it has become faster), `ci95`, `margin`,
        `by` and `verdict`.
    """
    before = {key_of(result): result for result in old["results"]}
    after = {key_of(result): result for result in new["results"]}
    pairs = [(result, before[key]) for key, result in after.items() if key in before]
    least = max(control_margin(document.get("aa")) for document in (new, old))
    differences = _differences(new, old)
    rows = [_row(now, then, new, old, least) for now, then in pairs]
    return {
        "file": name,
        "date_utc": old["env"].get("date_utc"),
        "another_machine": differences,
        "warnings": [
            *differences,
            *_other_protocol(new, old),
            *_changed_files(new, old),
            *_unpaired(rows, new, old),
        ],
        "results": rows,
        "only_new": [label_of(result) for key, result in after.items() if key not in before],
        "only_old": [label_of(result) for key, result in before.items() if key not in after],
    }


def _row(
    now: dict[str, Any], then: dict[str, Any], new: dict[str, Any], old: dict[str, Any], least: float
) -> dict[str, Any]:
    by, sides = "times", (then["latency_ms"], now["latency_ms"])
    ratio, ends = sides[0]["p50"] / sides[1]["p50"], _quotient(sides[0]["ci95"], sides[1]["ci95"])
    if _same_baseline(now, then, new, old):
        # Each is baseline time / own time, so the new over the old is old time / new time.
        by, sides = f"ratio to {now['vs_baseline']['name']}", (now["vs_baseline"], then["vs_baseline"])
        ratio, ends = sides[0]["ratio"] / sides[1]["ratio"], _quotient(sides[0]["ci95"], sides[1]["ci95"])
    keys = ("artefact", "runtime", "precision", "threads", "batch")
    return {
        **dict(zip(keys, key_of(now), strict=True)),
        "old_ms": then["latency_ms"]["p50"],
        "new_ms": now["latency_ms"]["p50"],
        "ratio": rounded(ratio),
        "ci95": ends and [rounded(end) for end in ends],
        "margin": rounded(least),
        "by": by,
        "verdict": stats.verdict(ends, least),
    }


def _quotient(above: list[float] | None, below: list[float] | None) -> stats.Interval | None:
    """Bounds the quotient of two values in these intervals; 1 is in it if the intervals overlap."""
    if above is None or below is None:
        return None
    return above[0] / below[1], above[1] / below[0]


def _same_baseline(
    now: dict[str, Any], then: dict[str, Any], new: dict[str, Any], old: dict[str, Any]
) -> bool:
    ours, theirs = now["vs_baseline"], then["vs_baseline"]
    if ours is None or theirs is None:
        return False
    keys = ("name", "runtime", "precision")
    same_cell = [ours.get(key) for key in keys] == [theirs.get(key, ours.get(key)) for key in keys]
    files = [document["artefacts"][side["name"]]["sha256"] for document, side in ((new, ours), (old, theirs))]
    return same_cell and files[0] == files[1]


def _differences(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Lists differences of the machine and the versions, which may look like a change of the files."""
    differences = []
    for key, what in _MACHINE.items():
        if new["env"].get(key) != old["env"].get(key):
            differences.append(f"another {what}: {old['env'].get(key)!r}, now {new['env'].get(key)!r}")
    versions = [document["env"].get("runtimes", {}) for document in (old, new)]
    used = {result["runtime"].removesuffix("-compile") for result in new["results"]}
    for name in sorted(used & set(versions[0]) & set(versions[1])):
        if versions[0][name] != versions[1][name]:
            differences.append(f"another version of {name}: {versions[0][name]}, now {versions[1][name]}")
    return differences


def _other_protocol(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    differences = [
        f"other {what}: {old['protocol'].get(key)}, now {new['protocol'].get(key)}"
        for key, what in _PROTOCOL.items()
        if new["protocol"].get(key) != old["protocol"].get(key)
    ]
    for document, when in ((old, "the earlier"), (new, "this")):
        if document.get("quality") == "noisy":
            differences.append(f"the machine was noisy during {when} measurement")
    return differences


def _changed_files(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Lists baselines that are another file now, and so no common measure."""
    names = {result["vs_baseline"]["name"] for result in new["results"] if result["vs_baseline"]}
    changed = [
        name
        for name in sorted(names & set(old["artefacts"]))
        if new["artefacts"][name]["sha256"] != old["artefacts"][name]["sha256"]
    ]
    return [f"the baseline {name} is another file now; the times themselves are compared" for name in changed]


def _unpaired(rows: list[dict[str, Any]], new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    if not rows:
        return ["no result is of the same artefact, runtime, precision, threads and batch in both"]
    by_times = [row for row in rows if row["by"] == "times"]
    baselines = {r["vs_baseline"]["name"] for d in (new, old) for r in d["results"] if r["vs_baseline"]}
    if any(row["artefact"] not in baselines for row in by_times):
        return [
            "times of two hours are compared, and a machine's speed changes from one to the next; with the "
            "same --baseline in both the ratios to it are"
        ]
    return []
