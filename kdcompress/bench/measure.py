"""Measures the latency of model files against each other, with confidence intervals and an A/A control.

Every cell (artefact, runtime, threads, batch) is a process of its own. All are loaded and warmed up first;
then come rounds, in each of which every cell is timed for some moments, in shuffled order. What slows the
machine for a while slows all cells of a round, so the ratios *per round* stay comparable where absolute
times do not. A second copy of the baseline (the A/A control) shows how far apart identical things come out.

A plan is written first (plan.py), carried out by programs that need nothing of kdcompress
(device/scheduler.py with device/worker.py), and its measurements become a document (results.py).
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcompress.atomic import sha256_of
from kdcompress.bench import environment, runtimes
from kdcompress.bench.answers import check_benchmark, refuse
from kdcompress.bench.cell import Artefact, Cell, Protocol
from kdcompress.bench.device.machine import granted_threads
from kdcompress.bench.plan import cells_of, plan
from kdcompress.bench.results import document, with_measurements
from kdcompress.bench.stats import MOST_ROUNDS
from kdcompress.bench.target import Local, Progress, RawResult, RuntimeChecker, Target
from kdcompress.deploy.files import parts_of
from kdcompress.errors import UserError, suggest

__all__ = ["Artefact", "Progress", "Protocol", "check_artefacts", "measure"]

_DEFAULTS = Protocol()
_MOST_VALUES = 1 << 27
"""Largest number of values of one image that is timed."""
_THIS_MACHINE = Local()


def measure(
    artefacts: Sequence[Artefact],
    *,
    threads: Sequence[int | Literal["all"]] = (1,),
    batch: Sequence[int] = (1,),
    rounds: int = 21,
    baseline: str | None = None,
    shape: tuple[int, int, int] | None = None,
    images: NDArray[np.float32] | None = None,
    progress: Progress | None = None,
    protocol: Protocol = _DEFAULTS,
    allow_code: bool = False,
    target: Target = _THIS_MACHINE,
) -> dict[str, Any]:
    """Times artefacts against each other on one machine.

    Args:
        artefacts: At least one; names unique.
        threads: Thread counts of the runtimes; "all" is the number of cores that the target grants; more is
            capped, with a warning.
        batch: Images per call.
        rounds: Shuffled and interleaved; below 6 there is no 95 % interval, and no difference is claimed.
        baseline: Name of the artefact that the others are compared with, and its own first runtime with its
            others. None: no comparison; the A/A control is made with the first artefact.
        shape: (C, H, W) for the files that leave it open. None: each its own.
        images: `[N, C, H, W]` float32 in [0, 1], real ones; None: noise. Networks of another input size get
            noise.
        progress: Called as work goes on.
        protocol: Durations and counts.
        allow_code: True if a network that runs the user's code may be built.
        target: The machine to measure on.

    Returns:
        A document of schema `kdcompress.bench/1`. A cell that fails is in `failures`; the others are
        measured.

    Raises:
        UserError: Nothing to measure, an unknown baseline or runtime, a missing file, or the target lacks
            something.
        TargetUnreachable: The target does not answer, or the link to it was cut.
        WorldError: The target's disk is full.
    """
    artefacts = check_artefacts(
        artefacts, threads=threads, batch=batch, rounds=rounds, baseline=baseline, target=target
    )
    entries = describe_artefacts(artefacts)
    with (
        tempfile.TemporaryDirectory(prefix="kdcompress-bench-") as folder,
        target.opened(artefacts) as machine,
    ):
        counts, warnings = granted_threads(threads, machine.cores)
        cells = cells_of(artefacts, counts, batch, baseline)
        planned = plan(
            cells, protocol, rounds, shape=shape, images=images, folder=Path(folder), allow_code=allow_code
        )
        result = machine.run(planned, Path(folder), progress)
    block = protocol_block(protocol, rounds=rounds, batch=batch, baseline=baseline)

    def make() -> dict[str, Any]:
        return make_document(
            target=target.described,
            artefacts=entries,
            cells=cells,
            baseline=baseline,
            before=machine.env,
            result=result,
            protocol={**block, "threads": counts},
            warnings=[*warnings, *machine.warnings],
        )

    host = target.described.get("host")
    if host is None:
        return make()
    try:  # what another machine measured is checked above; this is for what contradicts itself
        made = make()
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        refuse(host, f"measurements that do not fit together ({error!r:.100})")
    check_benchmark(made, host)
    return made


def make_document(
    *,
    target: dict[str, Any],
    artefacts: dict[str, Any],
    cells: Sequence[Cell],
    baseline: str | None,
    before: dict[str, Any],
    result: RawResult,
    protocol: dict[str, Any],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Makes the document of a plan that has been carried out.

    Args:
        target: The document's `target`.
        artefacts: The result of `describe_artefacts`.
        cells: The cells in the plan's order.
        baseline: Name of the artefact to compare with, or None.
        before: The machine's `env` block before.
        result: The measurements.
        protocol: The document's `protocol`.
        warnings: Sentences so far.
    """
    raw = result.raw
    return document(
        target=target,
        artefacts=artefacts,
        cells=with_measurements(cells, raw, protocol["rounds"]),
        failures=[_failure(cells[failure["cell"]], failure) for failure in raw["failures"]],
        baseline=baseline,
        env=before,
        protocol=protocol,
        warnings=[*warnings, *_pixel_warnings(cells), *environment.drift(before, result.after)],
    )


def _pixel_warnings(cells: Sequence[Cell]) -> list[str]:
    """Lists the artefacts whose time includes preparing the image."""
    warnings = []
    for artefact in {cell.artefact.name: cell.artefact for cell in cells if cell.artefact.pixels}.values():
        size = "" if artefact.shape is None else " of {1}×{2} pixels".format(*artefact.shape)
        warnings.append(f"{artefact.name}: resizing and normalising an image{size} is timed with the network")
    return warnings


def protocol_block(
    protocol: Protocol, *, rounds: int, batch: Sequence[int], baseline: str | None
) -> dict[str, Any]:
    """Makes the `protocol` of a document, without the thread counts.

    Args:
        protocol: Durations and counts.
        rounds: Number of rounds.
        batch: Images per call.
        baseline: Name of the artefact to compare with, or None.
    """
    return {
        "rounds": rounds,
        "block_s": protocol.block_s,
        "turns": protocol.turns,
        "min_calls": protocol.min_calls,
        "warmup_s": protocol.warmup_s,
        "gap_ms": protocol.gap_ms,
        "order": "shuffled",
        "seed": protocol.seed,
        "threads": [],
        "batch": list(batch),
        "baseline": baseline,
        "timer": "around one synchronous call, output materialised, preprocessing not included",
    }


def check_artefacts(
    artefacts: Sequence[Artefact],
    *,
    threads: Sequence[int | Literal["all"]],
    batch: Sequence[int],
    rounds: int,
    baseline: str | None,
    target: RuntimeChecker = _THIS_MACHINE,
) -> tuple[Artefact, ...]:
    """Checks that artefacts can be measured and gives each its runtimes; nothing is started.

    Args:
        artefacts: The files to time.
        threads: Thread counts, or "all".
        batch: Batch sizes.
        rounds: Number of rounds.
        baseline: Name of the artefact that the others are compared with, or None.
        target: The target that must have the runtimes.

    Raises:
        UserError: They cannot be measured.
    """
    artefacts = tuple(_with_runtimes(artefact, target) for artefact in artefacts)
    names = [artefact.name for artefact in artefacts]
    if not names or not threads or not batch:
        raise UserError("nothing to measure: give at least one file, one thread count and one batch size")
    duplicates = {name for name in names if names.count(name) > 1}
    if duplicates:
        raise UserError(f"two artefacts are named {duplicates.pop()!r}; names must differ")
    if baseline is not None and baseline not in names:
        raise UserError(f"the baseline {baseline!r} is not among the artefacts{suggest(baseline, names)}")
    numbers = (
        [("threads", n) for n in threads if n != "all"] + [("batch", n) for n in batch] + [("rounds", rounds)]
    )
    for key, number in numbers:
        if not isinstance(number, int) or number < 1:
            raise UserError(f"bench.{key}: expected a whole number of at least 1, got {number!r}")
    for artefact in artefacts:
        if artefact.shape is not None and math.prod(artefact.shape) > _MOST_VALUES:
            size = "×".join(map(str, artefact.shape))
            raise UserError(
                f"{artefact.file}: an image would have {size} values, and at most {_MOST_VALUES:,} are "
                "timed; choose a smaller one (--input-size)"
            )
    if rounds > MOST_ROUNDS:
        raise UserError(f"bench.rounds: expected at most {MOST_ROUNDS}, got {rounds}")
    return artefacts


def _with_runtimes(artefact: Artefact, target: RuntimeChecker) -> Artefact:
    if not artefact.file.is_file():
        raise UserError(f"{artefact.file}: no such file")
    suffix = artefact.file.suffix
    if not artefact.runtimes:
        runtime = runtimes.default_runtime(suffix)
        if runtime is None:
            raise UserError(f"{artefact.file}: expected {runtimes.expected_files()}")
        artefact = dataclasses.replace(artefact, runtimes=(runtime,))
    for runtime in artefact.runtimes:
        target.check_runtime(runtime)
        if not runtimes.takes(runtime, suffix):
            suffixes = " and ".join(runtimes.known_runtimes()[runtime].suffixes)
            raise UserError(f"{artefact.file}: the runtime {runtime!r} takes {suffixes} files")
    return artefact


def describe_artefacts(artefacts: Sequence[Artefact]) -> dict[str, Any]:
    """Makes the `artefacts` of a document.

    Args:
        artefacts: Artefacts whose files exist.
    """
    return {artefact.name: _describe(artefact) for artefact in artefacts}


def _describe(artefact: Artefact) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "file": artefact.file.name,
        "sha256": sha256_of(artefact.file),
        "bytes": _bytes(artefact.file),
        "params": artefact.params,
        "macs": artefact.macs,
        "precision": artefact.precision,
    }
    if artefact.accuracy is not None:
        entry["accuracy"] = artefact.accuracy
    if artefact.pixels:
        entry["input"] = {"dtype": "uint8", "layout": "NHWC", "preprocessing": "resized and normalised"}
    return entry


def _bytes(file: Path) -> int:
    """Size on the disk, with the weights that lie beside an ONNX graph or an OpenVINO graph."""
    parts = [file.with_name(file.name + ".data"), *parts_of(file)]
    return sum(part.stat().st_size for part in parts if part.is_file())


def _failure(cell: Cell, failure: dict[str, Any]) -> dict[str, Any]:
    return {
        "artefact": cell.artefact.name,
        "runtime": cell.runtime_title,
        "precision": cell.precision,
        "threads": cell.threads,
        "batch": cell.batch,
        "control": cell.is_control,
        "stage": failure["stage"],
        "type": failure["type"],
        "message": failure["message"],
    }
