"""From blocks of calls to the benchmark document: what was timed, how sure that is, what it is worth."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from kdcompress import __version__
from kdcompress.bench import stats

if TYPE_CHECKING:
    from kdcompress.bench.measure import Artefact
    from kdcompress.bench.session import Session

SCHEMA = "kdcompress.bench/1"

NOISY_SHARE = 0.2
"""Above this share of disturbed blocks absolute times are not to be trusted."""


class Copy(enum.Enum):
    """What a cell is there for."""

    MEASURED = enum.auto()
    CONTROL = enum.auto()  # the baseline again: A/A


@dataclass(frozen=True, slots=True)
class Block:
    """One cell's turn in one round.

    Args:
        calls_ms: Every call's duration.
        wall_s: Of the whole turn.
        cpu_s: CPU time of the process in it, over all threads.
        involuntary_switches: How often another process took a core from it.
        steal_s: CPU time that the hypervisor gave to other machines, all cores together; None if it is not
        told. peak_mb: Greatest resident memory of the worker so far.
    """

    calls_ms: list[float]
    wall_s: float
    cpu_s: float
    involuntary_switches: int
    steal_s: float | None
    peak_mb: float

    @classmethod
    def from_answer(cls, answer: dict[str, Any]) -> Self:
        """From a worker's answer to `block`."""
        calls = [max(ns, 1) / 1e6 for ns in answer["samples_ns"]]  # a clock of coarse ticks may say 0
        rest = (answer[key] for key in ("wall_s", "cpu_s", "involuntary_switches", "steal_s", "peak_mb"))
        return cls(calls, *rest)

    @property
    def median_ms(self) -> float:
        """Of its calls."""
        return statistics.median(self.calls_ms)

    def is_disturbed(self, threads: int) -> bool:
        """Whether something else had a part of the cores meanwhile.

        Args:
            threads: That the cell was given.
        """
        is_starved = self.cpu_s < 0.9 * self.wall_s  # the calling thread alone would fill it
        is_pushed_aside = self.involuntary_switches > 50 * self.wall_s * threads
        is_stolen_from = self.steal_s is not None and self.steal_s > 0.02 * self.wall_s * threads
        return is_starved or is_pushed_aside or is_stolen_from


@dataclass(slots=True, eq=False)
class Cell:
    """An artefact in one runtime at one thread count and batch size, and what was measured of it."""

    artefact: Artefact
    runtime: str
    threads: int
    batch: int
    copy: Copy
    session: Session | None = None
    loaded: dict[str, Any] = field(default_factory=dict)
    logits: NDArray[Any] | None = None
    blocks: list[Block] = field(default_factory=list)

    @property
    def label(self) -> str:
        """For progress and messages."""
        return f"{self.artefact.name} ({self.runtime}, threads {self.threads}, batch {self.batch})"

    @property
    def medians_ms(self) -> list[float]:
        """One per round."""
        return [block.median_ms for block in self.blocks]


def document(
    *,
    artefacts: dict[str, Any],
    cells: Sequence[Cell],
    failures: list[dict[str, Any]],
    baseline: str | None,
    env: dict[str, Any],
    protocol: dict[str, Any],
    warnings: list[str],
) -> dict[str, Any]:
    """The benchmark document.

    Args:
        artefacts: By name, as the schema has them.
        cells: Those measured over all rounds.
        failures: Those that were not.
        baseline: Name of the artefact to compare with, or None.
        env: As from `environment()`.
        protocol: What was asked for.
        warnings: Sentences so far.
    """
    measured = [cell for cell in cells if cell.copy is Copy.MEASURED]
    controls = [_control(cell, measured) for cell in cells if cell.copy is Copy.CONTROL]
    widest = max((control for control in controls if control), key=_width, default=None)
    margins = {
        (control["threads"], control["batch"]): stats.margin(_pair(control["ci95"]))
        for control in controls
        if control
    }
    results = [_result(cell, _baseline_of(cell, measured, baseline), margins) for cell in measured]
    disturbed = [block.is_disturbed(cell.threads) for cell in cells for block in cell.blocks]
    is_noisy = sum(disturbed) > NOISY_SHARE * len(disturbed)
    if is_noisy:
        warnings = [
            *warnings,
            f"noisy machine ({_share(disturbed)} of the blocks disturbed): trust ratios only",
        ]
    if protocol["rounds"] < stats.MIN_ROUNDS:
        few = f"{protocol['rounds']} rounds give no 95 % interval, so no difference can be shown"
        warnings = [*warnings, f"{few}; ask for at least {stats.MIN_ROUNDS}"]
    return {
        "schema": SCHEMA,
        "tool": {"name": "kdcompress", "version": __version__},
        "target": {"kind": "local"},
        "env": env,
        "protocol": protocol,
        "artefacts": artefacts,
        "results": results,
        "aa": widest and {key: widest[key] for key in ("ratio", "ci95", "threads", "batch", "artefact")},
        "quality": "noisy" if is_noisy else "ok",
        "warnings": warnings,
        "failures": failures,
    }


def _result(cell: Cell, base: Cell | None, margins: dict[tuple[int, int], float]) -> dict[str, Any]:
    calls = [call for block in cell.blocks for call in block.calls_ms]
    interval = stats.interval(cell.medians_ms)
    noise = _noise(cell, calls)
    return {
        "artefact": cell.artefact.name,
        "runtime": cell.runtime,
        "provider": cell.loaded["provider"],
        "precision": cell.artefact.precision,
        "threads": cell.threads,
        "batch": cell.batch,
        "input": [cell.batch, *cell.loaded["shape"]],
        "images": cell.loaded["images"],
        "parity": _parity(cell),
        "load_ms": _rounded(cell.loaded["load_ms"]),
        "first_ms": _rounded(cell.loaded["first_ms"]),
        "latency_ms": {
            "p50": _rounded(statistics.median(cell.medians_ms)),
            "ci95": interval and [_rounded(end) for end in interval],
            "p90": _rounded(stats.percentile(calls, 90)),
            "p99": _rounded(stats.percentile(calls, 99)),
            "min": _rounded(min(calls)),
            "n": len(calls),
        },
        "round_medians_ms": [_rounded(median) for median in cell.medians_ms],
        "vs_baseline": base and _comparison(cell, base, margins.get((cell.threads, cell.batch))),
        "rss_mb": {
            "base": round(cell.loaded["base_mb"], 1),
            "peak": round(max(block.peak_mb for block in cell.blocks), 1),
        },
        "noise": noise,
        "warnings": _warnings(cell, noise),
    }


def _comparison(cell: Cell, base: Cell, least: float | None) -> dict[str, Any]:
    ratio, interval = stats.paired_ratio(base.medians_ms, cell.medians_ms)
    least = stats.LEAST_DIFFERENCE if least is None else least
    return {
        "name": base.artefact.name,
        "runtime": base.runtime,
        "ratio": _rounded(ratio),
        "ci95": interval and [_rounded(end) for end in interval],
        "margin": _rounded(least),
        "verdict": stats.verdict(interval, least),
    }


def _baseline_of(cell: Cell, measured: Sequence[Cell], baseline: str | None) -> Cell | None:
    """The baseline's cell of the same threads and batch: in the same runtime if it was measured there."""
    if baseline is None or cell.artefact.name == baseline:
        return None
    same = [
        other
        for other in measured
        if (other.artefact.name, other.threads, other.batch) == (baseline, cell.threads, cell.batch)
    ]
    return next((other for other in same if other.runtime == cell.runtime), next(iter(same), None))


def _control(control: Cell, measured: Sequence[Cell]) -> dict[str, Any] | None:
    key = (control.artefact, control.runtime, control.threads, control.batch)
    twin = next(
        (cell for cell in measured if (cell.artefact, cell.runtime, cell.threads, cell.batch) == key), None
    )
    if twin is None:
        return None  # the baseline itself failed; that is in the failures
    ratio, interval = stats.paired_ratio(twin.medians_ms, control.medians_ms)
    return {
        "artefact": control.artefact.name,
        "threads": control.threads,
        "batch": control.batch,
        "ratio": _rounded(ratio),
        "ci95": interval and [_rounded(end) for end in interval],
    }


def _parity(cell: Cell) -> dict[str, Any] | None:
    reference = cell.artefact.reference
    if reference is None or cell.logits is None:
        return None
    spread = float(np.std(reference, axis=0).mean())
    return {
        "n": len(reference),
        "top1_agreement": float((cell.logits.argmax(1) == reference.argmax(1)).mean()),
        "max_err_over_spread": float(np.abs(cell.logits - reference).max() / spread) if spread > 0 else None,
    }


def _noise(cell: Cell, calls: list[float]) -> dict[str, Any]:
    blocks, medians = cell.blocks, cell.medians_ms
    return {
        "cpu_over_wall": round(sum(b.cpu_s for b in blocks) / max(sum(b.wall_s for b in blocks), 1e-9), 2),
        "involuntary_switches": sum(block.involuntary_switches for block in blocks),
        "marked_blocks": sum(block.is_disturbed(cell.threads) for block in blocks),
        "share_over_2x": round(stats.share_over_twice_the_median(calls), 4),
        "round_spread": round(max(medians) / min(medians), 2),
        "bimodal": stats.has_two_modes(medians) or stats.has_two_modes(calls),
    }


def _warnings(cell: Cell, noise: dict[str, Any]) -> list[str]:
    warnings = []
    if noise["bimodal"]:
        apart = f"two groups more than {stats.MODE_RATIO:g}x apart"
        warnings.append(f"two modes: the times fall into {apart}; read the ratio, not the median")
    elif noise["round_spread"] > stats.MODE_RATIO:
        warnings.append(
            f"the rounds differ by up to {noise['round_spread']:g}x; read the ratio, not the median"
        )
    if cell.loaded["images"] == "noise":
        warnings.append("timed on noise, not on real images")
    return warnings


def _width(control: dict[str, Any]) -> float:
    return stats.margin(_pair(control["ci95"]))


def _pair(ends: list[float] | None) -> stats.Interval | None:
    return None if ends is None else (ends[0], ends[1])


def _share(flags: list[bool]) -> str:
    return f"{100 * sum(flags) / len(flags):.0f} %"


def _rounded(number: float | None) -> float | None:
    """Four significant digits: more would be noise."""
    return None if number is None else float(f"{number:.4g}")
