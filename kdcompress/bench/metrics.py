"""The figures of a benchmark's result that a condition can name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["time", "memory", "number", "any"]
"""The unit of a value; a number without a unit goes with anything (milliseconds, megabytes)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a result.

    Args:
        kind: Its unit: time in ms, memory in MB of 1e6 bytes, or none.
        read: Reads the figure from a result and its artefact; None if it is missing.
        if_missing: Explanation for a missing figure.
    """

    kind: Kind
    read: Callable[[dict[str, Any], dict[str, Any]], float | None]
    if_missing: str = "there is no such figure"


def _end(place: str, index: int) -> Callable[[dict[str, Any], dict[str, Any]], float | None]:
    def end(result: dict[str, Any], _: dict[str, Any]) -> float | None:
        ends = (result.get(place) or {}).get("ci95")
        return None if ends is None else float(ends[index])

    return end


def _ratio(result: dict[str, Any], _: dict[str, Any]) -> float | None:
    return None if result["vs_baseline"] is None else float(result["vs_baseline"]["ratio"])


def _agreement(result: dict[str, Any], _: dict[str, Any]) -> float | None:
    if result.get("parity") is None or result.get("images") == "noise":
        return None  # random noise has no right class
    return float(result["parity"]["top1_agreement"])


def top1_of(artefact: dict[str, Any]) -> float | None:
    """Reads the top-1 accuracy of an entry of `artefacts`; None if it is not known."""
    top1: float | None = (artefact.get("accuracy") or {}).get("top1")
    return top1


def _megabytes(artefact: dict[str, Any]) -> float | None:
    size: int | None = artefact.get("bytes")
    return None if size is None else size / 1e6


_FEW_ROUNDS = "an interval needs 6 rounds"
NO_BASELINE = "it is the baseline, or has none, or too few rounds for an interval"
NO_PARITY = "it is what the others are compared with, has none, or ran on noise (give images with --recipe)"
METRICS: dict[str, Metric] = {
    "p50": Metric("time", lambda r, a: r["latency_ms"]["p50"]),
    "p50_low": Metric("time", _end("latency_ms", 0), _FEW_ROUNDS),
    "p50_high": Metric("time", _end("latency_ms", 1), _FEW_ROUNDS),
    "p90": Metric("time", lambda r, a: r["latency_ms"]["p90"], "it needs 64 calls"),
    "p99": Metric("time", lambda r, a: r["latency_ms"].get("p99"), "it needs 662 calls"),
    "min": Metric("time", lambda r, a: r["latency_ms"].get("min")),
    "load": Metric("time", lambda r, a: r["load_ms"]),
    "first": Metric("time", lambda r, a: r["first_ms"]),
    "throughput": Metric("number", lambda r, a: r.get("throughput_img_s")),
    "ratio": Metric("number", _ratio, NO_BASELINE),
    "ratio_low": Metric("number", _end("vs_baseline", 0), NO_BASELINE),
    "ratio_high": Metric("number", _end("vs_baseline", 1), NO_BASELINE),
    "rss": Metric("memory", lambda r, a: r["rss_mb"]["peak"]),
    "size": Metric("memory", lambda r, a: _megabytes(a)),
    "params": Metric("number", lambda r, a: a.get("params")),
    "macs": Metric("number", lambda r, a: a.get("macs")),
    "agreement": Metric("number", _agreement, NO_PARITY),
    "top1": Metric("number", lambda r, a: top1_of(a), "the data has no labels"),
}
