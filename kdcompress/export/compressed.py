"""Makes, proves and times the smaller files of a student, and builds their verdict entries."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompress.bench.environment import environment
from kdcompress.bench.measure import Artefact, measure
from kdcompress.bench.paired import paired
from kdcompress.data.source import Source
from kdcompress.deploy.accuracy import Batches
from kdcompress.deploy.derived import DerivedFile, DerivedMaker
from kdcompress.deploy.gate import Gate
from kdcompress.deploy.int8_diagnosis import slow_causes, usual_target
from kdcompress.deploy.load import GRAPH
from kdcompress.deploy.qat_int8 import QatStudent, choose_int8
from kdcompress.deploy.speed_verdict import speed_verdict, worst_layers
from kdcompress.deploy.variants import NAMES, Fp32Reference, Variant, to_fp16, to_int8
from kdcompress.errors import NetworkError
from kdcompress.export.int8_inputs import calibration_images, int8_target
from kdcompress.progress import Progress
from kdcompress.recipe import BenchSection, Int8Section
from kdcompress.report import verdict

Test = Callable[[], Batches]
"""Opens the test split."""

_ON_X86 = "onnxruntime computes float16 in float32 on x86 processors, so nothing but the size is gained"


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
        """Lists the files that have their final names."""
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


def compressed_makers(
    int8: Int8Section | None,
    fp16: bool,
    train: Source,
    test: Test,
    *,
    workers: int,
    tuned: Callable[[Path], QatStudent | None],
) -> list[DerivedMaker]:
    """Describes how the int8 and the fp16 file are made and proved; they share one float32 reference.

    Args:
        int8: How the int8 file is made; None: not at all.
        fp16: True: an fp16 file.
        train: The training split, to calibrate with.
        test: Opens the test split.
        workers: Processes that decode images.
        tuned: Loads the student with weights that were tuned for int8, for a folder; None: it was not.
    """
    section = int8 or Int8Section()
    images = functools.cache(lambda: calibration_images(section, train, workers=workers))
    reference = functools.cache(lambda folder: Fp32Reference(folder / GRAPH, test))

    def make_int8(folder: Path, staging: Path, _: dict[str, Any]) -> Variant:
        settings = {key: getattr(section, key) for key in ("ranges", "rescue", "max_drop")}
        settings["target"] = int8_target(section)
        inputs = (reference(folder), images(), staging)
        student = tuned(folder)
        if student is None:
            return _attempted("int8", staging, inputs[0], lambda: to_int8(*inputs, **settings))
        return _attempted("int8", staging, inputs[0], lambda: choose_int8(*inputs, student, **settings))

    def make_fp16(folder: Path, staging: Path, _: dict[str, Any]) -> Variant:
        inputs = (reference(folder), images(), staging)
        return _attempted("fp16", staging, inputs[0], lambda: to_fp16(*inputs))

    makers = [DerivedMaker("int8", make_int8)] if int8 is not None else []
    return [*makers, DerivedMaker("fp16", make_fp16)] if fp16 else makers


def artefacts(made: CompressedFiles, student: dict[str, Any]) -> list[Artefact]:
    """Lists the files that passed, to be timed.

    Args:
        made: Files made by `compressed_makers`.
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
        made: Files made by `compressed_makers`.
        bench: A benchmark of them and the student, of the document's schema.
    """
    return {variant.precision: _entry(variant, made.exact, bench) for variant in made.passed}


def time_compressed(
    made: CompressedFiles,
    images: NDArray[np.float32],
    bench: BenchSection,
    student: dict[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Times the files that passed against the float32 one and returns the benchmark's document.

    Args:
        made: The files, under whatever names they have now.
        images: `[N, C, H, W]` of the test split.
        bench: How they are timed.
        student: The `student` object of `results.json`.
        progress: Progress display.
    """
    facts = {key: student[key] for key in ("params", "macs")}
    exact = Artefact("student", made.exact.path, ("onnxruntime",), **facts)
    with progress.counter() as tell:
        return measure(
            [exact, *artefacts(made, student)],
            threads=bench.threads,
            batch=bench.batch,
            rounds=bench.rounds,
            baseline="student",
            images=images,
            progress=lambda done, total, what: tell(f"bench: {what.split()[0]}", done, total),
        )


def lines(entries: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yields the lines of the verdicts for a person.

    Args:
        entries: `variants` of `results.json`.
    """
    for entry in entries.values():
        yield entry["verdict"]["sentence"]
        if "qat" in entry:
            yield f"      {entry['qat']['sentence']}"
        if entry["verdict"]["told"]:
            yield f"      {entry['verdict']['told']}"


def _attempted(
    precision: str, staging: Path, exact: Fp32Reference, make_it: Callable[[], Variant]
) -> Variant:
    """Makes the file, or a failed gate with the reason why it cannot be made."""
    try:
        made = make_it()
    except NetworkError as error:
        gate = Gate(f"{precision}_made", False, None, None, str(error))
        made = Variant(precision, staging / NAMES[precision], [gate], {})
    return dataclasses.replace(made, exact=exact)


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
        other_target=_foreign_target(variant),
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
