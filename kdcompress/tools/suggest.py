"""`kdcompress suggest`: finds the largest student within a latency budget on the device, before training.

1. Every candidate is built and exported untrained, as it would ship.
2. Short first timings, a few candidates at a time, drop those that are far too slow, so that a small board
   neither holds all files at once nor spends its time on the slowest.
3. The others are timed in shuffled, interleaved rounds, as `bench` does it.
4. Candidates whose interval straddles the budget are timed for twice as many rounds more, if they are larger
   than the largest that fits.
5. The largest that fits with 95 % confidence is the answer. Size is the number of parameters: the latency is
   measured already, and parameters are the common measure of what a network can learn.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdcompress import __version__, discovery
from kdcompress.atomic import write_text
from kdcompress.bench.budget import CONFIDENCE, Budget, megabytes, milliseconds
from kdcompress.bench.target import Local, Target
from kdcompress.data.dataset import data_set_name
from kdcompress.deploy.formats import onnx
from kdcompress.errors import UserError
from kdcompress.networks.build import accepted_channels
from kdcompress.progress import Progress
from kdcompress.recipe import AUTO, RANDOM, Recipe, StudentSection, load_recipe
from kdcompress.run.networks import needs_of
from kdcompress.tools.suggest_candidates import (
    StudentSpec,
    check_students,
    default_students,
    export_candidate,
    parameters_of,
)
from kdcompress.tools.suggest_search import Trial, file_fits, largest, no_answer, shown_latency

SCHEMA = "kdcompress.suggest/1"

SIDE = 224
CLASSES = 1000


@dataclass(frozen=True, slots=True)
class SuggestRequest:
    """The options of `kdcompress suggest`.

    Args:
        budget: Longest median call, with its unit.
        memory: Largest file, with its unit; None: any.
        peak_memory: Most memory of the running network, with its unit; None: any.
        students: Students to time; empty: the default list for this size of images.
        recipe: Recipe that the student is for; None: the next options say the images and classes.
        data: Folder of the recipe's data, to count its classes.
        overrides: Changes to the recipe.
        method: Replaces the recipe's method.
        preset: Published settings of the method.
        input_size: Side of the images in pixels; None: 224.
        channels: Channels of the images; None: 3.
        classes: Number of classes K; None: 1,000.
        threads: Thread count of the runtime.
        batch: Images per call.
        rounds: Number of rounds.
        target: The device.
        opset: Opset of the files; None: the exporter's choice.
        out: File for a copy of the recipe with the answer in it; None: it is not written.
        allow_code: True if `python:` networks may be built.
    """

    budget: str
    memory: str | None = None
    peak_memory: str | None = None
    students: tuple[str, ...] = ()
    recipe: str | None = None
    data: str | None = None
    overrides: tuple[str, ...] = ()
    method: str | None = None
    preset: str | None = None
    input_size: int | None = None
    channels: int | None = None
    classes: int | None = None
    threads: int | Literal["all"] = 1
    batch: int = 1
    rounds: int = 21
    target: Target = field(default_factory=Local)
    opset: int | None = None
    out: Path | None = None
    allow_code: bool = False


def suggest(request: SuggestRequest, progress: Progress) -> dict[str, Any]:
    """Times untrained students on the device and finds the largest within the budget.

    Args:
        request: The options.
        progress: Terminal output.

    Returns:
        The document of schema `kdcompress.suggest/1`; `answer` is null if nothing fits, and `no_answer`
        then says why. If there is an answer, the copy of the recipe has been written to `out`.

    Raises:
        UserError: The options cannot be used, or none of the students can be exported; nothing has been
            timed.
        TargetUnreachable: The device does not answer.
        WorldError: A disk is full.
    """
    budget = Budget(
        milliseconds("--budget", request.budget),
        None if request.memory is None else megabytes("--memory", request.memory),
        None if request.peak_memory is None else megabytes("--peak-memory", request.peak_memory),
    )
    onnx.check_opset(request.opset)
    _check_out(request)
    recipe = None
    if request.recipe is not None:
        recipe = load_recipe(
            request.recipe,
            request.overrides,
            method=request.method,
            preset=request.preset,
            allow_code=request.allow_code,
        )
    spec, classes_from = _student_spec(request, recipe)
    names, left_out = _names(request, recipe, spec)
    with request.target.opened(()):  # a missing device is reported before a minute of exporting
        pass
    with tempfile.TemporaryDirectory(prefix="kdcompress-suggest-") as folder, progress.counter() as tell:
        candidates = []
        for done, name in enumerate(names):
            tell("suggest: exporting", done, len(names))
            candidates.append(export_candidate(name, spec, Path(folder), largest_mb=budget.file_mb))
        tell("suggest: exporting", len(names), len(names))
        if all(candidate.problem for candidate in candidates):
            problems = [f"{candidate.student}: {candidate.problem}" for candidate in candidates]
            raise UserError("\n  ".join(["none of the students can be timed", *problems]))
        trial = Trial(
            budget,
            side=spec.side,
            threads=request.threads,
            batch=request.batch,
            rounds=request.rounds,
            target=request.target,
            tell=tell,
        )
        trial.time([c for c in candidates if c.file is not None and file_fits(c, budget)])
    rows = sorted(
        (trial.row(candidate) for candidate in candidates),
        key=lambda row: (-(row["params"] or 0), -(row["macs"] or 0)),
    )
    answer = largest(rows)
    document = {
        "schema": SCHEMA,
        "tool": {"name": "kdcompress", "version": __version__},
        "target": request.target.described,
        "env": trial.env,
        "budget": {
            "latency_ms": budget.latency_ms,
            "file_mb": budget.file_mb,
            "ram_mb": budget.ram_mb,
            "confidence": CONFIDENCE,
        },
        "protocol": {
            "runtime": "onnxruntime",
            "threads": trial.threads,
            "batch": request.batch,
            "rounds": request.rounds,
            "weights": "untrained",
            "images": "noise",
        },
        "input": {"channels": spec.channels, "height": spec.side, "width": spec.side},
        "classes": spec.classes,
        "classes_from": classes_from,
        "results": rows,
        "left_out": left_out,
        "answer": answer and _answer(answer),
        "most_accurate": _most_accurate(rows),
        "no_answer": None if answer else no_answer(rows, budget),
        "quality": trial.quality,
        "warnings": trial.warnings,
        "recipe": None,
    }
    if answer is not None and request.out is not None:
        assert recipe is not None
        _write_recipe(request.out, recipe, answer, request, progress)
        document["recipe"] = str(request.out)
    return document


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    model = row["student"]
    return {
        "student": model,
        "recipe": f"student: {{model: {model}}}",
        "set": f"--set student.model={model}",
    }


def _most_accurate(rows: Sequence[dict[str, Any]]) -> str | None:
    """Finds the student with the best published ImageNet top-1 of those that fit."""
    published = [row for row in rows if row["verdict"] == "fits" and row["imagenet_top1"]]
    best = max(published, key=lambda row: row["imagenet_top1"]["top1"], default=None)
    return None if best is None else best["student"]


def _student_spec(request: SuggestRequest, recipe: Recipe | None) -> tuple[StudentSpec, str]:
    """Finds the input and classes of the students, and where the number of classes comes from."""
    if recipe is None:
        for option, value in (
            ("--data", request.data),
            ("--set", request.overrides),
            ("--method", request.method),
            ("--preset", request.preset),
        ):
            if value:
                raise UserError(f"{option}: belongs to a --recipe, and none is given")
        side, channels = request.input_size or SIDE, request.channels or 3
        classes, source = (request.classes, "option") if request.classes else (CLASSES, "default")
        return StudentSpec(
            channels, side, classes, opset=request.opset, allow_code=request.allow_code
        ), source
    constants = discovery.header("dataset", recipe.data.dataset).constants
    if request.input_size is not None:
        raise UserError("--input-size: a recipe says its image size; change it with --set data.image_size=N")
    if request.channels is not None:
        raise UserError(f"--channels: the recipe's data set, {recipe.data.dataset}, says them")
    classes, source = _classes(request, recipe, constants.get("CLASSES"))
    others = [section.model for section in (recipe.teacher, *recipe.peers) if section is not None]
    own = recipe.data.channels
    if own != "auto":  # then a teacher does as the images are
        others = [peer.model for peer in recipe.peers]
    spec = StudentSpec(
        constants["CHANNELS"] if own == "auto" else own,
        recipe.data.image_size or constants["SIZE"],
        classes,
        frozenset.intersection(
            frozenset({1, 3} if own == "auto" else {own}), *(accepted_channels(model) for model in others)
        ),
        request.opset,
        request.allow_code,
    )
    return spec, source


def _classes(request: SuggestRequest, recipe: Recipe, data_classes: int | None) -> tuple[int, str]:
    if not needs_of(recipe).task.has_classes:
        if request.classes is not None:
            raise UserError(
                f"--classes: the method {recipe.method['name']} trains a backbone, which has none"
            )
        return 0, "recipe"
    if data_classes is not None:
        if request.classes not in (None, data_classes):
            raise UserError(f"--classes: the data set {recipe.data.dataset} has {data_classes}")
        return data_classes, "recipe"
    if request.classes is not None:
        return request.classes, "option"
    root = request.data or recipe.data.root
    if root is not None and recipe.data.labels != "none":
        section = recipe.data.model_copy(update={"root": root})
        names = discovery.load("dataset", data_set_name(section)).class_names(section)
        if names:
            return len(names), "data"
    return CLASSES, "default"


def _names(
    request: SuggestRequest, recipe: Recipe | None, spec: StudentSpec
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Lists the students to time, and the default students that are no smaller than the teacher."""
    if request.students:
        return check_students(request.students, spec), []
    names = default_students(spec.side)
    if recipe is None:
        return names, []
    left_out = []
    if recipe.teacher is not None:
        largest = parameters_of(recipe.teacher.model, spec)
        sizes = {name: parameters_of(name, spec) for name in names if name != recipe.student.model}
        left_out = [
            {"student": name, "params": params} for name, params in sizes.items() if params >= largest
        ]
    excluded = {entry["student"] for entry in left_out}
    return tuple(dict.fromkeys([recipe.student.model, *(n for n in names if n not in excluded)])), left_out


def _check_out(request: SuggestRequest) -> None:
    if request.out is None:
        return
    if request.recipe is None:
        raise UserError("--out: is a copy of a --recipe with the student in it, and none is given")
    if request.out.suffix not in {".yaml", ".yml"}:
        raise UserError(f"--out {request.out}: expected a name that ends in .yaml")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", request.out.stem) is None:
        raise UserError(
            f"--out {request.out}: its name becomes the recipe's; only letters, digits, '.', '_' and '-'"
        )
    if request.out.exists():
        raise UserError(f"--out {request.out}: exists; choose another name")
    if not request.out.absolute().parent.is_dir():
        raise UserError(f"--out {request.out}: there is no folder {request.out.parent}")


def _write_recipe(
    out: Path, recipe: Recipe, row: dict[str, Any], request: SuggestRequest, progress: Progress
) -> None:
    """Writes a copy of the recipe with the suggested student, called by the name of its file."""
    student = recipe.student
    if student.model != row["student"]:
        start = student.weights if student.weights in (AUTO, RANDOM, None) else AUTO
        dropped = [key for key in ("weights", "taps") if getattr(student, key) not in (start, None)]
        if dropped:
            progress.warn(
                f"{out}: left out student.{' and student.'.join(dropped)}, which were {student.model}'s"
            )
        student = StudentSection(model=row["student"], weights=start)
    threads = "1 thread" if request.threads == 1 else f"threads {request.threads}"
    head = (
        f"# {recipe.name} with the student that fits {request.budget.strip()}: {row['student']}\n#\n"
        f"# Measured untrained, {threads}, batch {request.batch}: {shown_latency(row)}\n"
    )
    write_text(out, head + recipe.replace(name=out.stem, student=student).to_yaml())
