"""Files made after a proven `student.onnx` (int8, fp16, image input, ensemble), each with its own gates."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdcompress.atomic import sha256_of, staging_folder, translated
from kdcompress.data.split_name import TEST
from kdcompress.deploy.gate import GATES, Gate, merge, with_split_name
from kdcompress.errors import GateFailed
from kdcompress.progress import Progress

FAILED = "failed"
_STAGING = ".derived"


class DerivedFile(ABC):
    """A file and its gates; the subclasses are frozen dataclasses.

    Attributes:
        path: The file under its final name, in whatever folder it is; it may not exist if it was not made.
        gates: All of them, passed or not.
    """

    path: Path
    gates: list[Gate]

    @property
    @abstractmethod
    def prefix(self) -> str:
        """Returns the beginning of the names of its gates."""

    @property
    def title(self) -> str:
        """Returns its name in a message."""
        return self.path.name

    @property
    def passed(self) -> bool:
        """Returns whether every gate passed."""
        return all(gate.passed for gate in self.gates)

    def advice(self) -> Iterator[str]:
        """Yields advice after a failed gate, a line each."""
        yield from ()

    def entry(self) -> dict[str, Any]:
        """Returns its hash and size, as in a manifest."""
        return {"sha256": sha256_of(self.path), "bytes": self.path.stat().st_size}


File = TypeVar("File", bound=DerivedFile)


@dataclass(frozen=True, slots=True)
class DerivedMaker:
    """One derived file to make.

    Args:
        name: Its name in the progress display, such as int8.
        make: Makes and proves the file: takes the folder of the proven files, the folder to write it to, and
            the `student` object of `results.json`. A file that fails a gate is returned like any other.
    """

    name: str
    make: Callable[[Path, Path, dict[str, Any]], DerivedFile]


@contextmanager
def derived_files(
    folder: Path,
    makers: Sequence[DerivedMaker],
    student: dict[str, Any],
    progress: Progress,
    test_name: str = TEST,
) -> Iterator[list[DerivedFile]]:
    """Makes and proves files in a staging folder, for the caller to `place`; the rest is removed at the end.

    Args:
        folder: Holds the proven files that they are made of.
        makers: Their makers, in this order.
        student: The `student` object of `results.json`.
        progress: Progress display.
        test_name: Name of the test split in the gates' sentences.

    Raises:
        UserError: A file cannot be had of this network or these images.
    """
    with staging_folder(folder / _STAGING) as staging:
        files = []
        with progress.counter() as tell:
            for number, maker in enumerate(makers):
                tell(f"{maker.name} file", number, len(makers))
                file = maker.make(folder, staging, student)
                files.append(_with_gates(file, with_split_name(file.gates, test_name)))
                tell(f"{maker.name} file", number + 1, len(makers))
        yield files


def place(files: Sequence[File], folder: Path) -> list[File]:
    """Moves files to their final names, or under `failed/`, and puts their gates into `gates.json`.

    A file of an earlier export under one of the names is removed in either case.

    Args:
        files: Still where they were made, on the disk of the folder.
        folder: Holds the float32 file and its `gates.json`.
    """
    placed = [_place_file(file, folder) for file in files]
    if (folder / GATES).is_file():
        for file in placed:
            merge(folder, file.prefix, file.gates)
    return placed


def failure(files: Sequence[DerivedFile]) -> GateFailed | None:
    """Returns the error to raise once everything else is written; None if every gate passed."""
    lines: list[str] = []
    for file in files:
        failed = [gate for gate in file.gates if not gate.passed]
        if failed:
            count = f"{len(failed)} gate{'s' if len(failed) != 1 else ''} failed"
            where = f"it is {file.path}" if file.path.exists() else "it was not made"
            lines.append(f"{file.title} does not ship: {count}; {where}")
            lines += [f"  {line}" for line in (*failed, *file.advice())]
    return GateFailed("\n".join(lines)) if lines else None


def _with_gates(file: File, gates: list[Gate]) -> File:
    return dataclasses.replace(file, gates=gates)  # type: ignore[type-var]


def _place_file(file: File, folder: Path) -> File:
    final, failed = folder / file.path.name, folder / FAILED / file.path.name
    target = final if file.passed else failed
    with translated(target):
        final.unlink(missing_ok=True)
        failed.unlink(missing_ok=True)
        if file.path.exists():
            target.parent.mkdir(exist_ok=True)
            os.replace(file.path, target)
    return dataclasses.replace(file, path=target)  # type: ignore[type-var]


def first_latencies(bench: Mapping[str, Any]) -> dict[str, float]:
    """Returns the median milliseconds of the first timing of each artefact of a `bench.json`, by name."""
    latencies: dict[str, float] = {}
    for row in bench["results"]:
        latencies.setdefault(row["artefact"], row["latency_ms"]["p50"])
    return latencies
