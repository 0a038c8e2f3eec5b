"""Makes the benchmark document from measured blocks: medians, intervals, ratios, verdicts and warnings."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompress import __version__
from kdcompress.bench import stats
from kdcompress.bench.cell import Block, Cell
from kdcompress.bench.device import scheduler

SCHEMA = "kdcompress.bench/1"

NOISY_SHARE = 0.2
"""Share of disturbed blocks above which absolute times cannot be trusted."""

LEAST_AGREEMENT = 0.9
"""Least share of images to which a file in fewer bits gives the same class as full precision."""


def with_measurements(cells: Sequence[Cell], raw: dict[str, Any], rounds: int) -> list[Cell]:
    """Adds the measurements to the cells, and gives those that were measured over all rounds.

    Args:
        cells: The cells in the plan's order.
        raw: The result of `scheduler.run`.
        rounds: Rounds of the plan.

    Raises:
        ValueError: A cell has the blocks of another number of rounds.
    """
    measured = []
    for cell, entry in zip(cells, raw["cells"], strict=True):
        if entry is not None:
            if len(entry["blocks"]) != rounds:
                raise ValueError(f"{len(entry['blocks'])} rounds of {cell.artefact.name}, and not {rounds}")
            cell.loaded, cell.parity = entry["loaded"], entry["parity"]
            cell.blocks = [Block.from_answer(answer) for answer in entry["blocks"]]
            measured.append(cell)
    return measured


def document(
    *,
    target: dict[str, Any],
    artefacts: dict[str, Any],
    cells: Sequence[Cell],
    failures: list[dict[str, Any]],
    baseline: str | None,
    env: dict[str, Any],
    protocol: dict[str, Any],
    warnings: list[str],
) -> dict[str, Any]:
    """Makes the benchmark document.

    Args:
        target: The measured machine: `{"kind", ...}`.
        artefacts: Descriptions of the artefacts by name.
        cells: Cells measured over all rounds.
        failures: Descriptions of the other cells.
        baseline: Name of the artefact to compare with, or None.
        env: The `env` block of the machine.
        protocol: The document's `protocol`.
        warnings: Sentences so far.
    """
    measured = [cell for cell in cells if not cell.is_control]
    controls = [control for cell in cells if cell.is_control if (control := _control(cell, measured))]
    widest = max(controls, key=control_margin, default=None)
    margins = {(control["threads"], control["batch"]): control_margin(control) for control in controls}
    disturbed = [block.is_disturbed(cell.threads) for cell in cells for block in cell.blocks]
    is_noisy = sum(disturbed) > NOISY_SHARE * len(disturbed)
    results = [_result(cell, _baseline_of(cell, measured, baseline), margins, is_noisy) for cell in measured]
    if target["kind"] != "local":
        for cell, result in zip(measured, results, strict=True):
            result["warnings"] += _verification(cell)
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
        "target": target,
        "env": env,
        "protocol": protocol,
        "artefacts": artefacts,
        "results": results,
        "aa": widest and {key: widest[key] for key in ("ratio", "ci95", "threads", "batch", "artefact")},
        "quality": "noisy" if is_noisy else "ok",
        "warnings": warnings,
        "failures": failures,
    }


def _result(
    cell: Cell, base: Cell | None, margins: dict[tuple[int, int], float], is_noisy: bool
) -> dict[str, Any]:
    calls = np.sort(np.concatenate([block.calls_ms for block in cell.blocks]))
    interval = stats.interval(cell.medians_ms)
    noise = _noise(cell, calls)
    return {
        "artefact": cell.artefact.name,
        "runtime": cell.runtime_title,
        "provider": cell.loaded["provider"],
        "precision": cell.precision,
        "threads": cell.threads,
        "batch": cell.batch,
        "input": [cell.batch, *cell.loaded["shape"]],
        "images": cell.loaded["images"],
        "parity": _parity(cell),
        "import_ms": rounded(cell.loaded["import_ms"]),
        "load_ms": rounded(cell.loaded["load_ms"]),
        "first_ms": rounded(cell.loaded["first_ms"]),
        "latency_ms": {
            "p50": rounded(statistics.median(cell.medians_ms)),
            "ci95": interval and [rounded(end) for end in interval],
            "p90": rounded(stats.percentile(calls, 90)),
            "p99": rounded(stats.percentile(calls, 99)),
            "min": rounded(float(calls[0])),
            "n": len(calls),
        },
        "throughput_img_s": rounded(1e3 * cell.batch / statistics.median(cell.medians_ms)),
        "round_medians_ms": [rounded(median) for median in cell.medians_ms],
        "vs_baseline": base and _comparison(cell, base, margins.get((cell.threads, cell.batch))),
        "rss_mb": {
            "base": round(cell.loaded["base_mb"], 1),
            "peak": round(max(block.peak_mb for block in cell.blocks), 1),
        },
        "noise": noise,
        "warnings": _warnings(cell, noise, is_noisy),
    }


def _comparison(cell: Cell, base: Cell, least: float | None) -> dict[str, Any]:
    ratio, interval = stats.paired_ratio(base.medians_ms, cell.medians_ms)
    least = stats.LEAST_DIFFERENCE if least is None else least
    return {
        "name": base.artefact.name,
        "runtime": base.runtime_title,
        "precision": base.precision,
        "ratio": rounded(ratio),
        "ci95": interval and [rounded(end) for end in interval],
        "margin": rounded(least),
        "verdict": stats.verdict(interval, least),
    }


def _baseline_of(cell: Cell, measured: Sequence[Cell], baseline: str | None) -> Cell | None:
    """Finds the baseline's cell of the same threads and batch, in the same runtime if there is one.

    The baseline's own further runtimes are compared with its first.
    """
    if baseline is None:
        return None
    same = [
        other
        for other in measured
        if (other.artefact.name, other.threads, other.batch) == (baseline, cell.threads, cell.batch)
    ]
    first = next(iter(same), None)
    if cell.artefact.name == baseline:
        return None if cell is first else first
    return next((other for other in same if other.runtime == cell.runtime), first)


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
        "ratio": rounded(ratio),
        "ci95": interval and [rounded(end) for end in interval],
    }


def _parity(cell: Cell) -> dict[str, Any] | None:
    keys = ("to", "n", "top1_agreement", "max_err_over_spread")
    return cell.parity and {key: cell.parity[key] for key in keys}


def _noise(cell: Cell, calls: NDArray[np.float64]) -> dict[str, Any]:
    blocks, medians = cell.blocks, cell.medians_ms
    marked = sum(block.is_disturbed(cell.threads) for block in blocks)
    return {
        "cpu_over_wall": round(sum(b.cpu_s for b in blocks) / max(sum(b.wall_s for b in blocks), 1e-9), 2),
        "involuntary_switches": sum(block.involuntary_switches for block in blocks),
        "marked_blocks": marked,
        "contaminated": marked > NOISY_SHARE * len(blocks),
        "share_over_2x": round(stats.share_over_twice_the_median(calls), 4),
        "round_spread": round(max(medians) / min(medians), 2),
        "bimodal": stats.has_two_modes(medians) or stats.has_two_modes(calls),
    }


def _warnings(cell: Cell, noise: dict[str, Any], is_noisy: bool) -> list[str]:
    warnings = []
    if noise["bimodal"]:
        apart = f"two groups more than {stats.MODE_RATIO:g}x apart"
        warnings.append(f"two modes: the times fall into {apart}; read the ratio, not the median")
    elif noise["round_spread"] > stats.MODE_RATIO:
        warnings.append(
            f"the rounds differ by up to {noise['round_spread']:g}x; read the ratio, not the median"
        )
    if noise["contaminated"] and not is_noisy:  # there one warning covers them all
        share = f"{noise['marked_blocks']} of {len(cell.blocks)} rounds"
        warnings.append(f"contaminated: in {share} other work had a part of the cores")
    if cell.loaded["images"] == "noise":
        warnings.append("timed on noise, not on real images")
    return warnings + _parity_warnings(cell)


def _parity_warnings(cell: Cell) -> list[str]:
    parity = cell.parity
    if parity is None:
        return []
    if not parity["varies"]:
        return [f"parity with {parity['to']} shows nothing: the outputs hardly depend on the image"]
    if cell.precision == "fp32" and not parity["within"]:
        far = f"{parity['max_err_over_spread']:.2g} of their spread"
        return [f"its outputs differ from those of {parity['to']} by {far}: is it the same network?"]
    # Noise has no right class, so its classes say little.
    if parity["top1_agreement"] < LEAST_AGREEMENT and cell.loaded["images"] == "real":
        share = f"{100 * parity['top1_agreement']:.0f} % of {parity['n']} images"
        return [f"gives the class that {parity['to']} gives for only {share}; check its accuracy"]
    return []


def _verification(cell: Cell) -> list[str]:
    """Lists a warning if nothing proves that another machine computes the same outputs."""
    if cell.parity is not None and cell.parity["to"] == scheduler.REFERENCE:
        return []
    return ["unverified: there are no golden images to compare its outputs on the target with"]


def control_margin(control: dict[str, Any] | None) -> float:
    """Computes the least difference from an entry of an A/A control; None: there is no control."""
    if control is None:
        return stats.LEAST_DIFFERENCE
    ends = control["ci95"]
    return stats.margin(control["ratio"], None if ends is None else (ends[0], ends[1]))


def _share(flags: list[bool]) -> str:
    return f"{100 * sum(flags) / len(flags):.0f} %"


def rounded(number: float | None) -> float | None:
    """Rounds to four significant digits: more would be noise."""
    return None if number is None else float(f"{number:.4g}")
