"""The smaller files of a student: made of its `student.onnx`, proved, timed, and verdict_entries."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompress.atomic import staging_folder
from kdcompress.bench.environment import environment
from kdcompress.bench.measure import Artefact, measure
from kdcompress.bench.paired import paired
from kdcompress.data.source import Source
from kdcompress.deploy.accuracy import Batches, as_input
from kdcompress.deploy.derived import DerivedFile, place
from kdcompress.deploy.gate import Gate
from kdcompress.deploy.int8_diagnosis import slow_causes, usual_target
from kdcompress.deploy.load import GRAPH
from kdcompress.deploy.qat_int8 import QatStudent, choose_int8
from kdcompress.deploy.speed_verdict import speed_verdict, worst_layers
from kdcompress.deploy.variants import NAMES, Fp32Reference, Variant, to_fp16, to_int8
from kdcompress.errors import NetworkError
from kdcompress.export.int8_inputs import calibration_images, int8_target
from kdcompress.progress import Progress
from kdcompress.recipe import BenchSection, ExportSection, Int8Section
from kdcompress.report import verdict

Test = Callable[[], Batches]
"""Opens the test split."""

_STAGING = ".variants"
_ON_X86 = "onnxruntime computes float16 in float32 on x86 processors, so nothing but the size is gained"


@dataclass(frozen=True, slots=True)
class CompressionRequest:
    """Which smaller files.

    Args:
        int8: How; None: not at all.
        fp16: True: an fp16 file.
        rounds: Rounds of the timing that the verdicts rest on; None: `bench.rounds`.
        tuned_in: A run whose student may have been tuned for int8.
    """

    int8: Int8Section | None
    fp16: bool
    rounds: int | None = None
    tuned_in: Path | None = None

    @classmethod
    def of(cls, export: ExportSection) -> CompressionRequest:
        """Reads the request from a recipe."""
        return cls(export.int8, export.fp16)

    def __bool__(self) -> bool:
        return self.int8 is not None or self.fp16


@dataclass(frozen=True, slots=True)
class CompressedFiles:
    """The float32 file and the smaller files made from it.

    Args:
        exact: The float32 file.
        variants: All that were made, those that failed a gate among them.
    """

    exact: Fp32Reference
    variants: tuple[Variant, ...]

    @property
    def passed(self) -> list[Variant]:
        """Those that have their final names."""
        return [variant for variant in self.variants if variant.passed]

    @classmethod
    def of(cls, files: Sequence[DerivedFile]) -> CompressedFiles | None:
        """Selects the smaller files among derived ones; None: there are none."""
        variants = tuple(file for file in files if isinstance(file, Variant))
        if not variants:
            return None
        exact = variants[0].exact
        assert exact is not None
        return cls(exact, variants)

    def move_to(self, folder: Path) -> CompressedFiles:
        """Moves the files to their places in a folder and adds their gates to the others."""
        return dataclasses.replace(self, variants=tuple(place(self.variants, folder)))


def make(
    folder: Path,
    wanted: CompressionRequest,
    train: Source,
    test: Test,
    progress: Progress,
    *,
    workers: int,
    tuned: QatStudent | None = None,
) -> CompressedFiles:
    """Makes and proves the files beside `student.onnx`; their gates join the others in `gates.json`.

    Args:
        folder: Holds the float32 file, proved.
        wanted: Which.
        train: The training split, to calibrate with.
        test: Opens the test split.
        progress: Progress display.
        workers: Processes that decode images.
        tuned: The student with weights that were tuned for int8, if it was.

    Raises:
        UserError: There is no float32 file, or it does not take these images.
    """
    with staging_folder(folder / _STAGING) as staging:
        with progress.counter() as tell:
            made = _compress(folder, staging, wanted, train, test, tell, workers, tuned)
        return made.move_to(folder)


def artefacts(made: CompressedFiles, student: dict[str, Any]) -> list[Artefact]:
    """The files that passed, to be timed.

    Args:
        made: Result of `compress`.
        student: The `student` object of `results.json`.
    """
    facts = {key: student[key] for key in ("params", "macs")}
    return [
        Artefact(_called(v.precision), v.path, ("onnxruntime",), precision=v.precision, **facts)
        for v in made.passed
    ]


def verdict_entries(made: CompressedFiles, bench: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Makes the `results.json` entries of the files that passed, by precision: figures, making and verdict.

    Args:
        made: Result of `compress`.
        bench: A benchmark of them and the student, of the document's schema.
    """
    return {variant.precision: _entry(variant, made.exact, bench) for variant in made.passed}


@contextmanager
def compress_and_time(
    folder: Path,
    wanted: CompressionRequest,
    train: Source,
    test: Test,
    bench: BenchSection,
    student: dict[str, Any],
    progress: Progress,
    *,
    workers: int,
    tuned: QatStudent | None = None,
) -> Iterator[tuple[CompressedFiles, dict[str, Any]]]:
    """Makes the files and times them against the float32 one, and leaves it to the caller to `place` them.

    Until then an interruption leaves the folder as it was; what is not placed is gone at the end.

    Args:
        folder: Holds the float32 file, proved.
        wanted: Which.
        train: The training split, to calibrate with.
        test: Opens the test split.
        bench: How it is timed.
        student: The `student` object of `results.json`.
        progress: Progress display.
        workers: Processes that decode images.
        tuned: See `make`.

    Yields:
        The files, and the benchmark's document.
    """
    with staging_folder(folder / _STAGING) as staging:
        with progress.counter() as tell:
            made = _compress(folder, staging, wanted, train, test, tell, workers, tuned)
        facts = {key: student[key] for key in ("params", "macs")}
        exact = Artefact("student", made.exact.path, ("onnxruntime",), **facts)
        with progress.counter() as tell:
            document = measure(
                [exact, *artefacts(made, student)],
                threads=bench.threads,
                batch=bench.batch,
                rounds=wanted.rounds or bench.rounds,
                baseline="student",
                images=_images(test),
                progress=lambda done, total, what: tell(f"bench: {what.split()[0]}", done, total),
            )
        yield made, document


def lines(entries: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The verdicts as a person reads them.

    Args:
        entries: `variants` of `results.json`.
    """
    for entry in entries.values():
        yield entry["verdict"]["sentence"]
        if "qat" in entry:
            yield f"      {entry['qat']['sentence']}"
        if entry["verdict"]["told"]:
            yield f"      {entry['verdict']['told']}"


def _compress(
    folder: Path,
    staging: Path,
    wanted: CompressionRequest,
    train: Source,
    test: Test,
    tell: Any,
    workers: int,
    tuned: QatStudent | None,
) -> CompressedFiles:
    steps = 2 + wanted.fp16 + (wanted.int8 is not None)
    tell("smaller files", 0, steps)
    exact = Fp32Reference(folder / GRAPH, test)
    tell("smaller files", 1, steps)
    section = wanted.int8 or Int8Section()
    images = calibration_images(section, train, workers=workers)
    variants = []
    if wanted.int8 is not None:
        settings = {key: getattr(section, key) for key in ("ranges", "rescue", "max_drop")}
        settings["target"] = int8_target(section)
        make_it = functools.partial(to_int8, exact, images, staging, **settings)
        if tuned is not None:
            make_it = functools.partial(choose_int8, exact, images, staging, tuned, **settings)
        variants.append(_attempted("int8", staging, make_it))
        tell("smaller files", 2, steps)
    if wanted.fp16:
        variants.append(_attempted("fp16", staging, functools.partial(to_fp16, exact, images, staging)))
    tell("smaller files", steps, steps)
    return CompressedFiles(exact, tuple(dataclasses.replace(file, exact=exact) for file in variants))


def _attempted(precision: str, staging: Path, make_it: Callable[[], Variant]) -> Variant:
    """The file, or the gate that says why this network cannot be had so."""
    try:
        return make_it()
    except NetworkError as error:
        gate = Gate(f"{precision}_made", False, None, None, str(error))
        return Variant(precision, staging / NAMES[precision], [gate], {})


def _entry(variant: Variant, exact: Fp32Reference, bench: dict[str, Any]) -> dict[str, Any]:
    timings = paired(bench, _called(variant.precision), "student")
    right, before = (
        None if outputs is None else exact.right(outputs)
        for outputs in (variant.outputs_NK, exact.outputs_NK)
    )
    ci95 = None if right is None or before is None else verdict.gain(right, before)["ci95"]
    bytes_ = variant.path.stat().st_size
    losses = [loss for loss in variant.losses if loss.layer not in variant.making.get("in_float", ())]
    said = speed_verdict(
        variant.precision,
        variant.score,
        bytes_ / exact.path.stat().st_size,
        timings,
        _because(variant, exact),
        losses=losses,
        ci95=ci95,
        elsewhere=_foreign_target(variant),
    )
    return {
        "file": variant.path.name,
        **variant.entry(),
        **variant.score,
        "making": variant.making,
        "verdict": {**said, "told": worst_layers(losses)},
        **({} if variant.tuning is None else {"qat": variant.tuning}),
    }


def _because(variant: Variant, exact: Fp32Reference) -> list[str]:
    machine, isa = platform.machine(), environment()["isa"]
    if variant.precision == "int8":
        return slow_causes(exact.path, variant.path, machine, isa, variant.making["in_float"])
    return [] if usual_target(machine, isa) == "arm" else [_ON_X86]


def _foreign_target(variant: Variant) -> str | None:
    """Returns the target of an int8 file, if this machine is of another kind."""
    target = variant.making.get("target")
    if target is None:
        return None
    here = usual_target(platform.machine(), environment()["isa"])
    return str(target) if (target == "arm") != (here == "arm") else None


def _called(precision: str) -> str:
    return f"student ({precision})"


def _images(test: Test) -> NDArray[np.float32]:
    return as_input(next(iter(test()))[0])
