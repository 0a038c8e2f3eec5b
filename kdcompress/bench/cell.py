"""The nouns of a benchmark: a file to time, how it is timed, and a cell with its measurements."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kdcompress.bench import runtimes

WARMUP_S = 0.5
GAP_MS = 60
"""Several threads of ONNX Runtime wait for more work by spinning, up to 50 ms, beside the next cell."""


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file to time.

    Args:
        name: Its name in the document; unique.
        file: `.onnx`, or `.safetensors` with its `config.json` beside it.
        runtimes: Names of `runtimes.known_runtimes()`, or `/path/to/file.py:ClassName`. Empty: the one that
            suits the file's suffix.
        params: Number of parameters, or None if not known.
        macs: Multiply-accumulates of one image, or None.
        precision: "fp32", "fp16" or "int8", for the document.
        reference: `[N, K]` logits that the first N of the images must give. None: those of the first runtime
            of its network.
        tolerance: Largest error of a float32 file against the reference; a file beyond it is not timed. None:
            the error is reported only.
        network: Artefacts of one network in several formats or precisions share this name; their outputs are
            compared. None: its own name.
        images: `[N, C, H, W]` float32 in [0, 1]; None: the images of the whole benchmark.
        shape: (C, H, W) of its images if the file leaves it open; None: the shape of the whole benchmark.
        accuracy: Its figures on labelled images, for the document; None: not known.
        pixels: True if it takes decoded images, and resizes and normalises them itself.
    """

    name: str
    file: Path
    runtimes: tuple[str, ...] = ()
    params: int | None = None
    macs: int | None = None
    precision: str = "fp32"
    reference: NDArray[Any] | None = field(default=None, repr=False, compare=False)
    tolerance: float | None = None
    network: str | None = None
    images: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    shape: tuple[int, int, int] | None = None
    accuracy: dict[str, Any] | None = field(default=None, compare=False)
    pixels: bool = False


@dataclass(frozen=True, slots=True)
class Protocol:
    """Durations and counts of a measurement.

    Args:
        block_s: Least duration of one cell's calls in a round.
        turns: Number of pieces that a block is divided into; the other cells have theirs in between.
        min_calls: Least number of calls in a round.
        warmup_s: Least duration of the unrecorded calls after loading.
        gap_ms: Pause after each turn of more than one thread.
        timeout_s: Longest wait for a single answer of a worker.
        seed: Seed of the order of the cells and of noise images.
    """

    block_s: float = 0.2
    turns: int = 4
    min_calls: int = 10
    warmup_s: float = WARMUP_S
    gap_ms: int = GAP_MS
    timeout_s: float = 300
    seed: int = 0


class CellRole(enum.Enum):
    """Tells a measured cell from the A/A control, which times the baseline a second time."""

    MEASURED = enum.auto()
    CONTROL = enum.auto()


@dataclass(frozen=True, slots=True)
class Block:
    """The calls of one cell in one round, and the load of the machine meanwhile.

    Args:
        calls_ms: Duration of every call.
        wall_s: Duration of the whole block.
        cpu_s: CPU time of the process in it, over all threads.
        involuntary_switches: Number of times another process took a core from it.
        steal_s: CPU time that the hypervisor gave to other machines, all cores together; None if not known.
        peak_mb: Greatest resident memory of the worker so far.
    """

    calls_ms: NDArray[np.float64]
    wall_s: float
    cpu_s: float
    involuntary_switches: int
    steal_s: float | None
    peak_mb: float

    @classmethod
    def from_answer(cls, answer: dict[str, Any]) -> Self:
        """Reads a worker's answer to `block`."""
        # A clock of coarse ticks may say 0.
        calls = np.maximum(np.asarray(answer["samples_ns"], dtype=np.int64), 1) / 1e6
        rest = (answer[key] for key in ("wall_s", "cpu_s", "involuntary_switches", "steal_s", "peak_mb"))
        return cls(calls, *rest)

    @property
    def median_ms(self) -> float:
        """Median duration of its calls."""
        return float(np.median(self.calls_ms))

    def is_disturbed(self, threads: int) -> bool:
        """Tells if other work used the cores during the block.

        Args:
            threads: Number of threads of the cell.
        """
        is_starved = self.cpu_s < 0.9 * self.wall_s  # the calling thread alone would fill it
        is_pushed_aside = self.involuntary_switches > 50 * self.wall_s * threads
        is_stolen_from = self.steal_s is not None and self.steal_s > 0.02 * self.wall_s * threads
        return is_starved or is_pushed_aside or is_stolen_from


@dataclass(slots=True, eq=False)
class Cell:
    """An artefact in one runtime at one thread count and batch size, with its measurements."""

    artefact: Artefact
    runtime: str
    threads: int
    batch: int
    role: CellRole
    loaded: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] | None = None
    blocks: list[Block] = field(default_factory=list)

    @property
    def is_control(self) -> bool:
        """True for the A/A copy."""
        return self.role is CellRole.CONTROL

    @property
    def runtime_title(self) -> str:
        """The runtime's name in the document; the precision stands beside it."""
        return runtimes.title(self.runtime)

    @property
    def precision(self) -> str:
        """The precision that it computes in."""
        return runtimes.precision(self.runtime, self.artefact.precision)

    @property
    def medians_ms(self) -> list[float]:
        """Median duration of each round."""
        return [block.median_ms for block in self.blocks]
