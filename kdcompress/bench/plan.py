"""What shall be timed, and how: from artefacts to the plan that driver.py carries out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompress.bench import runtimes
from kdcompress.bench.results import Cell, Copy
from kdcompress.deploy.verify import PARITY_LIMIT, ROUNDING, VARY_LIMIT

GAP_MS = 60
"""Several threads of ONNX Runtime wait for more work by spinning, up to 50 ms, beside the next cell."""
WARMUP_S = 0.5
WARMUP_CALLS = 10
PARITY_IMAGES = 32
"""At most, of those given; of noise a worker has 8."""
SCHEMA = "kdcompress.bench-plan/1"


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file to time.

    Args:
        name: Names it in the document; unique.
        file: `.onnx`, or `.safetensors` with its `config.json` beside it.
        runtimes: Of `runtimes.RUNTIMES`, or `/path/to/file.py:ClassName`. Empty: the one that suits the
            file's suffix.
        params: Number of parameters, or None if not known.
        macs: Multiply-accumulates of one image, or None.
        precision: As in the document: "fp32", "fp16", "int8".
        reference: `[N, K]` logits that the first N of the images must give. None: those of the first of its
            network's runtimes.
        tolerance: Of a float32 file: how far at most its outputs may be from the reference, else it is not
            timed. None: how far they are is told.
        network: Artefacts of one network in several formats or precisions share this; their outputs are
            compared. None: its own name.
        images: `[N, C, H, W]` float32 in [0, 1]; None: those of all.
        shape: (C, H, W) of its images where the file leaves it open; None: that of all.
        accuracy: Its figures on labelled images, for the document; None: not known.
        pixels: Whether it takes images as they are decoded, and resizes and normalises them itself.
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
    """How it is measured.

    Args:
        block_s: Least duration of one cell's calls in a round.
        turns: Into so many pieces that is divided, between which the other cells have theirs.
        min_calls: Least number of calls in a round.
        warmup_s: Least duration of the unrecorded calls after loading.
        gap_ms: Pause after each turn of more than one thread.
        timeout_s: Longest wait for a single answer of a worker.
        seed: Of the order of the cells and of noise images.
    """

    block_s: float = 0.2
    turns: int = 4
    min_calls: int = 10
    warmup_s: float = WARMUP_S
    gap_ms: int = GAP_MS
    timeout_s: float = 300
    seed: int = 0


def cells_of(
    artefacts: Sequence[Artefact], threads: Sequence[int], batch: Sequence[int], baseline: str | None
) -> list[Cell]:
    """A cell for each artefact, runtime, thread count and batch size, and the baseline's A/A copies."""
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


def plan(
    cells: Sequence[Cell],
    protocol: Protocol,
    rounds: int,
    *,
    shape: tuple[int, int, int] | None,
    images: NDArray[np.float32] | None,
    folder: Path,
    allow_code: bool = False,
) -> dict[str, Any]:
    """The plan, as driver.py has it; the arrays it names are put into the folder.

    Args:
        cells: To be timed.
        protocol: How long and how often.
        rounds: How many.
        shape: (C, H, W) for the files that leave it open.
        images: For the artefacts without their own.
        folder: For the arrays; exists until the plan has been carried out.
        allow_code: Whether a network that runs the user's code may be built.
    """
    files: dict[int, str] = {}

    def saved(array: NDArray[Any] | None, dtype: Any) -> str | None:
        if array is None:
            return None
        if id(array) not in files:
            files[id(array)] = f"{len(files)}.npy"
            np.save(folder / files[id(array)], np.ascontiguousarray(array, dtype=dtype))
        return str(folder.resolve() / files[id(array)])

    entries = []
    for cell in cells:
        artefact = cell.artefact
        own_images = images if artefact.images is None else artefact.images
        entries.append(
            {
                "artefact": artefact.name,
                "control": cell.copy is Copy.CONTROL,
                "runtime": cell.runtime,
                "file": str(artefact.file.resolve()),
                "threads": cell.threads,
                "batch": cell.batch,
                "shape": artefact.shape or shape,
                "images": saved(own_images, np.float32),
                "reference": saved(artefact.reference, np.float64),
                "tolerance": artefact.tolerance,
                "count": 0 if own_images is None else min(PARITY_IMAGES, len(own_images)),
                "group": artefact.network or artefact.name,
                # Rounding in fewer bits is a difference that is measured, not one that is wrong.
                "exact": cell.precision == "fp32" and cell.runtime in runtimes.RUNTIMES,
            }
        )
    return {
        "schema": SCHEMA,
        "protocol": {
            **dataclasses.asdict(protocol),
            "rounds": rounds,
            "warmup_calls": WARMUP_CALLS,
            "parity_limit": PARITY_LIMIT,
            "parity_vary": VARY_LIMIT,
            "parity_rounding": ROUNDING,
        },
        "cells": entries,
        "allow_code": allow_code,
    }
