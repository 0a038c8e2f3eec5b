"""The plan of a benchmark: which cells are timed and how, in the form that device/scheduler.py reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompress.bench import runtimes
from kdcompress.bench.cell import Artefact, Cell, CellRole, Protocol
from kdcompress.deploy.verify import PARITY_LIMIT, ROUNDING, VARY_LIMIT

WARMUP_CALLS = 10
PARITY_IMAGES = 32
"""Most images of those given whose outputs are compared; of noise a worker has 8."""
SCHEMA = "kdcompress.bench-plan/1"


def cells_of(
    artefacts: Sequence[Artefact], threads: Sequence[int], batch: Sequence[int], baseline: str | None
) -> list[Cell]:
    """Lists a cell for each artefact, runtime, thread count and batch size, and the baseline's A/A copies."""
    controlled = baseline or artefacts[0].name
    cells = []
    for artefact in artefacts:
        for count in threads:
            for size in batch:
                for runtime in artefact.runtimes:
                    cells.append(Cell(artefact, runtime, count, size, CellRole.MEASURED))
                if artefact.name == controlled:
                    cells.append(Cell(artefact, artefact.runtimes[0], count, size, CellRole.CONTROL))
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
    """Writes the plan that device/scheduler.py reads, and puts the arrays that it names into the folder.

    Args:
        cells: The cells to time.
        protocol: Durations and counts.
        rounds: Number of rounds.
        shape: (C, H, W) for the files that leave it open.
        images: Images for the artefacts without their own.
        folder: Folder for the arrays; it must exist until the plan has been carried out.
        allow_code: True if a network that runs the user's code may be built.
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
                "control": cell.is_control,
                "runtime": cell.runtime,
                "program": runtimes.program(cell.runtime),
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
                "exact": cell.precision == "fp32" and cell.runtime in runtimes.known_runtimes(),
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
