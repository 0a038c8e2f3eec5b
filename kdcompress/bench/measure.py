"""`bench`: how long artefacts take on this machine, measured so that a difference is a difference.

Every cell (artefact, runtime, threads, batch) is a process of its own. All are loaded and warmed up first;
then come rounds, in each of which every cell is timed once for a moment, in shuffled order. What slows the
machine for a while slows all cells of a round, so the ratios *per round* stay comparable where absolute
times do not. A second copy of the baseline (the A/A control) shows how far apart identical things come out.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcompress.atomic import sha256_of
from kdcompress.bench import environment
from kdcompress.bench.results import Block, Cell, Copy, document
from kdcompress.bench.session import CellFailed, Session
from kdcompress.cores import granted_cores
from kdcompress.errors import UserError, suggest

GAP_MS = 60
"""Pause before a block: an idle pool of ONNX Runtime spins for up to 50 ms, beside the next cell."""
WARMUP_S = 0.5
WARMUP_CALLS = 10

Progress = Callable[[int, int, str], None]
"""(done, of, what is being done)."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file to time.

    Args:
        name: Names it in the document; unique.
        file: `.onnx`, or `.safetensors` with its `config.json` beside it.
        runtimes: "onnxruntime", "torch", or `/path/to/file.py:ClassName`. Empty: the one that suits the
        file's suffix. params: Number of parameters, or None if not known. macs: Multiply-accumulates of one
        image, or None. precision: As in the document: "fp32", "fp16", "int8". reference: `[N, K]` logits
        that the first N of the images must give, or None: its parity stays unknown.
    """

    name: str
    file: Path
    runtimes: tuple[str, ...] = ()
    params: int | None = None
    macs: int | None = None
    precision: str = "fp32"
    reference: NDArray[Any] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Protocol:
    """How it is measured.

    Args:
        block_s: Least duration of one cell's turn in a round.
        min_calls: Least number of calls in it.
        warmup_s: Least duration of the unrecorded calls after loading.
        gap_ms: Pause before each turn.
        timeout_s: Longest wait for a single answer of a worker.
        seed: Of the order of the cells and of noise images.
    """

    block_s: float = 0.2
    min_calls: int = 10
    warmup_s: float = WARMUP_S
    gap_ms: int = GAP_MS
    timeout_s: float = 300
    seed: int = 0


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
) -> dict[str, Any]:
    """Times artefacts against each other on this machine.

    Args:
        artefacts: At least one; names unique.
        threads: Of the runtimes; "all" is `granted_cores()`; more than that is capped, with a warning.
        batch: Images per call.
        rounds: Shuffled and interleaved; below 6 there is no 95 % interval, and no difference is claimed.
        baseline: Name of the artefact that the others are compared with. None: no comparison; the A/A
            control is made with the first artefact.
        shape: (C, H, W) for the files that leave it open. None: each its own.
        images: `[N, C, H, W]` float32 in [0, 1], real ones; None: noise. Networks of another input size get
            noise.
        progress: Called as work goes on.
        protocol: How long and how often.

    Returns:
        A document of schema `kdcompress.bench/1`. A cell that fails is in `failures`; the others are
        measured.

    Raises:
        UserError: Nothing to measure, an unknown baseline or runtime, a missing file.
    """
    artefacts = tuple(_checked(artefact) for artefact in artefacts)
    _check(artefacts, threads, batch, rounds, baseline)
    counts, warnings = _granted(threads)
    warnings += environment.load_warnings()
    before = environment.environment()
    run = _Run(protocol, rounds, progress or (lambda done, of, what: None))
    with contextlib.ExitStack() as stack:
        path = _saved(images, stack)
        cells = run.load(_cells(artefacts, counts, batch, baseline), shape, path, stack)
        run.warm_up(cells)
        run.measure(cells)
    thermal = environment.drift(before, environment.environment())
    return document(
        artefacts={artefact.name: _describe(artefact) for artefact in artefacts},
        cells=[cell for cell in cells if cell.blocks],
        failures=run.failures,
        baseline=baseline,
        env=before,
        protocol={
            "rounds": rounds,
            "block_s": protocol.block_s,
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


class _Run:
    """The workers through loading, warming up and rounds; a cell that fails leaves, the others go on."""

    def __init__(self, protocol: Protocol, rounds: int, progress: Progress) -> None:
        self.protocol, self.rounds, self.progress = protocol, rounds, progress
        self.failures: list[dict[str, Any]] = []

    def load(
        self,
        cells: list[Cell],
        shape: tuple[int, int, int] | None,
        images: str | None,
        stack: contextlib.ExitStack,
    ) -> list[Cell]:
        """Starts a worker per cell; gives those that loaded."""
        loaded = []
        for number, cell in enumerate(cells):
            self.progress(number, len(cells), f"loading {cell.label}")
            cell.session = stack.enter_context(Session(cell.threads))
            answer = self._ask(
                cell, "load", runtime=cell.runtime, file=str(cell.artefact.file), batch=cell.batch,
                shape=shape, images=images, seed=self.protocol.seed,
            )  # fmt: skip
            if answer is not None:
                cell.loaded = answer
                loaded.append(cell)
        return loaded

    def warm_up(self, cells: list[Cell]) -> None:
        """Unrecorded calls, then the comparison with the reference logits."""
        for number, cell in enumerate(list(cells)):
            self.progress(number, len(cells), f"warming up {cell.label}")
            answer = self._ask(cell, "block", seconds=self.protocol.warmup_s, min_calls=WARMUP_CALLS)
            if answer is None:
                cells.remove(cell)
                continue
            reference = cell.artefact.reference
            if reference is not None and cell.copy is Copy.MEASURED and cell.loaded["images"] == "real":
                answer = self._ask(cell, "logits", count=len(reference))
                if answer is None:
                    cells.remove(cell)
                else:
                    cell.logits = np.asarray(answer["logits"])

    def measure(self, cells: list[Cell]) -> None:
        """The rounds."""
        order = random.Random(self.protocol.seed)
        for number in range(self.rounds):
            self.progress(number, self.rounds, f"timing round {number + 1} of {self.rounds}")
            turn = list(cells)
            order.shuffle(turn)
            for cell in turn:
                time.sleep(self.protocol.gap_ms / 1000)
                answer = self._ask(
                    cell, "block", seconds=self.protocol.block_s, min_calls=self.protocol.min_calls
                )  # fmt: skip
                if answer is None:
                    cell.blocks.clear()  # half a cell cannot be paired with whole ones
                    cells.remove(cell)
                else:
                    cell.blocks.append(Block.from_answer(answer))
        self.progress(self.rounds, self.rounds, "timing done")

    def _ask(self, cell: Cell, command: str, **arguments: Any) -> dict[str, Any] | None:
        assert cell.session is not None
        try:
            return cell.session.ask(command, timeout_s=self.protocol.timeout_s, **arguments)
        except CellFailed as failure:
            self.failures.append(
                {
                    "artefact": cell.artefact.name,
                    "runtime": cell.runtime,
                    "threads": cell.threads,
                    "batch": cell.batch,
                    "control": cell.copy is Copy.CONTROL,
                    "stage": failure.stage,
                    "type": failure.kind,
                    "message": failure.message,
                }
            )
            return None


def _cells(
    artefacts: Sequence[Artefact], threads: Sequence[int], batch: Sequence[int], baseline: str | None
) -> list[Cell]:
    controlled = baseline or artefacts[0].name
    cells = []
    for artefact in artefacts:
        for count in threads:
            for size in batch:
                for runtime in artefact.runtimes:
                    cells.append(Cell(artefact, runtime, count, size, Copy.MEASURED))
                if artefact.name == controlled:
                    cells.append(Cell(artefact, artefact.runtimes[0], count, size, Copy.CONTROL))
    return cells


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
    if artefact.runtimes:
        return artefact
    suited = {".onnx": ("onnxruntime",), ".safetensors": ("torch",)}.get(artefact.file.suffix)
    if suited is None:
        raise UserError(f"{artefact.file}: expected an .onnx or a .safetensors file")
    return Artefact(
        artefact.name,
        artefact.file,
        suited,
        artefact.params,
        artefact.macs,
        artefact.precision,
        artefact.reference,
    )


def _check(
    artefacts: Sequence[Artefact],
    threads: Sequence[int | Literal["all"]],
    batch: Sequence[int],
    rounds: int,
    baseline: str | None,
) -> None:
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
    for artefact in artefacts:
        for runtime in artefact.runtimes:
            if runtime not in {"onnxruntime", "torch"} and ":" not in runtime:
                raise UserError(f"unknown runtime {runtime!r}{suggest(runtime, ['onnxruntime', 'torch'])}")


def _describe(artefact: Artefact) -> dict[str, Any]:
    return {
        "file": artefact.file.name,
        "sha256": sha256_of(artefact.file),
        "bytes": artefact.file.stat().st_size,
        "params": artefact.params,
        "macs": artefact.macs,
        "precision": artefact.precision,
    }


def _saved(images: NDArray[np.float32] | None, stack: contextlib.ExitStack) -> str | None:
    if images is None:
        return None
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kdcompress-bench-"))
    path = Path(folder) / "images.npy"
    np.save(path, np.ascontiguousarray(images, dtype=np.float32))
    return str(path)
