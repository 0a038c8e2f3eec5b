"""`bench`: how long artefacts take on this machine, measured so that a difference is a difference.

Every cell (artefact, runtime, threads, batch) is a process of its own. All are loaded and warmed up first;
then come rounds, in each of which every cell is timed for some moments, in shuffled order. What slows the
machine for a while slows all cells of a round, so the ratios *per round* stay comparable where absolute
times do not. A second copy of the baseline (the A/A control) shows how far apart identical things come out.

What is to be done is written down first (plan.py), carried out by a file that needs nothing of kdcompress
(driver.py, with worker.py), and made a document of afterwards (results.py).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcompress.atomic import sha256_of
from kdcompress.bench import driver, environment, runtimes
from kdcompress.bench.plan import Artefact, Protocol, cells_of, plan
from kdcompress.bench.results import Cell, document, filled
from kdcompress.cores import granted_cores
from kdcompress.errors import UserError, suggest

__all__ = ["Artefact", "Progress", "Protocol", "check", "measure"]

Progress = Callable[[int, int, str], None]
"""(done, of, what is being done)."""

_DEFAULTS = Protocol()


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
) -> dict[str, Any]:
    """Times artefacts against each other on this machine.

    Args:
        artefacts: At least one; names unique.
        threads: Of the runtimes; "all" is `granted_cores()`; more than that is capped, with a warning.
        batch: Images per call.
        rounds: Shuffled and interleaved; below 6 there is no 95 % interval, and no difference is claimed.
        baseline: Name of the artefact that the others are compared with, and its own first runtime with its
            others. None: no comparison; the A/A control is made with the first artefact.
        shape: (C, H, W) for the files that leave it open. None: each its own.
        images: `[N, C, H, W]` float32 in [0, 1], real ones; None: noise. Networks of another input size get
            noise.
        progress: Called as work goes on.
        protocol: How long and how often.
        allow_code: Whether a network that runs the user's code may be built.

    Returns:
        A document of schema `kdcompress.bench/1`. A cell that fails is in `failures`; the others are
        measured.

    Raises:
        UserError: Nothing to measure, an unknown baseline or runtime, a missing file.
    """
    artefacts = check(artefacts, threads=threads, batch=batch, rounds=rounds, baseline=baseline)
    counts, warnings = _granted(threads)
    warnings += environment.load_warnings()
    before = environment.environment()
    cells = cells_of(artefacts, counts, batch, baseline)
    with tempfile.TemporaryDirectory(prefix="kdcompress-bench-") as folder:
        planned = plan(
            cells, protocol, rounds, shape=shape, images=images, folder=Path(folder), allow_code=allow_code
        )
        raw = driver.run(planned, folder, progress)
    thermal = environment.drift(before, environment.environment())
    return document(
        artefacts={artefact.name: _describe(artefact) for artefact in artefacts},
        cells=filled(cells, raw),
        failures=[_failure(cells[failure["cell"]], failure) for failure in raw["failures"]],
        baseline=baseline,
        env=before,
        protocol={
            "rounds": rounds,
            "block_s": protocol.block_s,
            "turns": protocol.turns,
            "min_calls": protocol.min_calls,
            "warmup_s": protocol.warmup_s,
            "gap_ms": protocol.gap_ms,
            "order": "shuffled",
            "seed": protocol.seed,
            "threads": counts,
            "batch": list(batch),
            "baseline": baseline,
            "timer": "around one synchronous call, output materialised, preprocessing not included",
        },
        warnings=[*warnings, *thermal],
    )


def check(
    artefacts: Sequence[Artefact],
    *,
    threads: Sequence[int | Literal["all"]],
    batch: Sequence[int],
    rounds: int,
    baseline: str | None,
) -> tuple[Artefact, ...]:
    """The artefacts, each with its runtimes, if they can be measured as asked; nothing is started.

    Args:
        artefacts: As for `measure`, like the others.
        threads: See there.
        batch: See there.
        rounds: See there.
        baseline: See there.

    Raises:
        UserError: They cannot.
    """
    artefacts = tuple(_checked(artefact) for artefact in artefacts)
    names = [artefact.name for artefact in artefacts]
    if not names or not threads or not batch:
        raise UserError("nothing to measure: give at least one file, one thread count and one batch size")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"two artefacts are named {twice.pop()!r}; names must differ")
    if baseline is not None and baseline not in names:
        raise UserError(f"the baseline {baseline!r} is not among the artefacts{suggest(baseline, names)}")
    numbers = (
        [("threads", n) for n in threads if n != "all"] + [("batch", n) for n in batch] + [("rounds", rounds)]
    )
    for key, number in numbers:
        if not isinstance(number, int) or number < 1:
            raise UserError(f"bench.{key}: expected a whole number of at least 1, got {number!r}")
    return artefacts


def _granted(threads: Sequence[int | Literal["all"]]) -> tuple[list[int], list[str]]:
    granted, warnings = granted_cores(), []
    counts: list[int] = []
    for asked in threads:
        count = granted if asked == "all" else min(asked, granted)
        if asked != "all" and asked > granted:
            warnings.append(
                f"threads={asked}, but this process may use only {granted} (affinity or quota); more threads "
                f"would measure waiting, so {granted} {'were' if granted > 1 else 'was'} used"
            )
        if count not in counts:
            counts.append(count)
    return counts, warnings


def _checked(artefact: Artefact) -> Artefact:
    if not artefact.file.is_file():
        raise UserError(f"{artefact.file}: no such file")
    suffix = artefact.file.suffix
    for runtime in artefact.runtimes:
        runtimes.check_runtime(runtime)
        if not runtimes.takes(runtime, suffix):
            raise UserError(
                f"{artefact.file}: the runtime {runtime!r} takes {runtimes.RUNTIMES[runtime].suffix} files"
            )
    if artefact.runtimes:
        return artefact
    if suffix not in runtimes.DEFAULT:
        raise UserError(f"{artefact.file}: expected an .onnx or a .safetensors file")
    return dataclasses.replace(artefact, runtimes=(runtimes.DEFAULT[suffix],))


def _describe(artefact: Artefact) -> dict[str, Any]:
    described: dict[str, Any] = {
        "file": artefact.file.name,
        "sha256": sha256_of(artefact.file),
        "bytes": _bytes(artefact.file),
        "params": artefact.params,
        "macs": artefact.macs,
        "precision": artefact.precision,
    }
    if artefact.accuracy is not None:
        described["accuracy"] = artefact.accuracy
    return described


def _bytes(file: Path) -> int:
    """On the disk, with the tensors that an ONNX file of ours or of others keeps beside itself."""
    beside = file.with_name(file.name + ".data")
    return file.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def _failure(cell: Cell, failure: dict[str, Any]) -> dict[str, Any]:
    return {
        "artefact": cell.artefact.name,
        "runtime": cell.shown,
        "precision": cell.precision,
        "threads": cell.threads,
        "batch": cell.batch,
        "control": cell.is_control,
        "stage": failure["stage"],
        "type": failure["type"],
        "message": failure["message"],
    }
