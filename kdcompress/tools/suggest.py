"""`kdcompress suggest`: which student keeps within a budget on the device, before anything is trained.

1. Every candidate is built and exported untrained, as it would ship.
2. A first look, a few candidates at a time, drops what is far too slow, so that a small board neither holds
   all of them at once nor is kept busy by the slowest.
3. The others are timed in shuffled, interleaved rounds, as `bench` does it.
4. Of those that it cannot be told of, the larger ones are timed for twice as many rounds more.
5. The largest that fits with 95 % confidence is the answer. Large is by parameters: multiply-accumulates do
   not tell the time and the time is measured; of the capacity that is left, they are the common measure.
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
from kdcompress.deploy.formats import onnx
from kdcompress.errors import UserError
from kdcompress.networks.build import accepted_channels
from kdcompress.progress import Progress
from kdcompress.recipe import NetworkSection, Recipe, load_recipe
from kdcompress.run.networks import needs_of
from kdcompress.tools.suggest_candidates import Wanted, checked, ladder, made, parameters_of
from kdcompress.tools.suggest_search import Trial, file_fits, largest, no_answer, shown_latency

SCHEMA = "kdcompress.suggest/1"

SIDE = 224
CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line.

    Args:
        budget: Of one call, with its unit.
        memory: Of the file, with its unit; None: any.
        peak_memory: Of the running network, with its unit; None: any.
        students: None of them: the ladder for this size of images.
        recipe: Whose images and classes the student is for; None: as the next three say.
        data: Folder of the recipe's data, which may tell its classes.
        overrides: Of the recipe.
        method: Replaces the recipe's method.
        preset: Published settings of the method.
        input_size: Side in pixels; None: 224.
        channels: Of the images; None: 3.
        classes: K; None: 1,000.
        threads: Of the runtime.
        batch: Images per call.
        rounds: Of the trial.
        target: The device.
        opset: Of the files; None: the exporter's choice.
        out: Where a copy of the recipe with the answer in it goes; None: nowhere.
        allow_code: Whether `python:` networks may be built.
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


def suggest(asked: Asked, progress: Progress) -> dict[str, Any]:
    """Times untrained students on the device and finds the largest within the budget.

    Args:
        asked: The command line.
        progress: What a watcher sees.

    Returns:
        The document of schema `kdcompress.suggest/1`; `answer` is null where nothing fits, and `no_answer`
        then says why. The recipe has been written where asked for and where there is an answer.

    Raises:
        UserError: Something asked for cannot be done, or none of the students can be made; nothing has been
            timed.
        TargetUnreachable: The device does not answer.
        WorldError: A disk is full.
    """
    budget = Budget(
        milliseconds("--budget", asked.budget),
        None if asked.memory is None else megabytes("--memory", asked.memory),
        None if asked.peak_memory is None else megabytes("--peak-memory", asked.peak_memory),
    )
    onnx.check_opset(asked.opset)
    _check_out(asked)
    recipe = None
    if asked.recipe is not None:
        recipe = load_recipe(
            asked.recipe,
            asked.overrides,
            method=asked.method,
            preset=asked.preset,
            allow_code=asked.allow_code,
        )
    wanted, classes_from = _wanted(asked, recipe)
    names, left_out = _names(asked, recipe, wanted)
    with asked.target.opened(()):  # a device that is not there is told before a minute of exporting
        pass
    with tempfile.TemporaryDirectory(prefix="kdcompress-suggest-") as folder, progress.counter() as tell:
        candidates = []
        for done, name in enumerate(names):
            tell("suggest: exporting", done, len(names))
            candidates.append(made(name, wanted, Path(folder), largest_mb=budget.file_mb))
        tell("suggest: exporting", len(names), len(names))
        if all(candidate.problem for candidate in candidates):
            told = [f"{candidate.student}: {candidate.problem}" for candidate in candidates]
            raise UserError("\n  ".join(["none of the students can be timed", *told]))
        trial = Trial(
            budget,
            side=wanted.side,
            threads=asked.threads,
            batch=asked.batch,
            rounds=asked.rounds,
            target=asked.target,
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
        "target": asked.target.described,
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
            "batch": asked.batch,
            "rounds": asked.rounds,
            "weights": "untrained",
            "images": "noise",
        },
        "input": {"channels": wanted.channels, "height": wanted.side, "width": wanted.side},
        "classes": wanted.classes,
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
    if answer is not None and asked.out is not None:
        assert recipe is not None
        _write_recipe(asked.out, recipe, answer, asked, progress)
        document["recipe"] = str(asked.out)
    return document


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    model = row["student"]
    return {
        "student": model,
        "recipe": f"student: {{model: {model}}}",
        "set": f"--set student.model={model}",
    }


def _most_accurate(rows: Sequence[dict[str, Any]]) -> str | None:
    """By published figures on ImageNet, of those that fit and have one."""
    known = [row for row in rows if row["verdict"] == "fits" and row["imagenet_top1"]]
    best = max(known, key=lambda row: row["imagenet_top1"]["top1"], default=None)
    return None if best is None else best["student"]


def _wanted(asked: Asked, recipe: Recipe | None) -> tuple[Wanted, str]:
    """What the students shall take and give, and who says how many classes there are."""
    if recipe is None:
        for option, value in (
            ("--data", asked.data),
            ("--set", asked.overrides),
            ("--method", asked.method),
            ("--preset", asked.preset),
        ):
            if value:
                raise UserError(f"{option}: belongs to a --recipe, and none is given")
        side, channels = asked.input_size or SIDE, asked.channels or 3
        classes, told = (asked.classes, "option") if asked.classes else (CLASSES, "default")
        return Wanted(channels, side, classes, opset=asked.opset, allow_code=asked.allow_code), told
    known = discovery.header("dataset", recipe.data.dataset).constants
    if asked.input_size is not None:
        raise UserError("--input-size: a recipe says its image size; change it with --set data.image_size=N")
    if asked.channels is not None:
        raise UserError(f"--channels: the recipe's data set, {recipe.data.dataset}, says them")
    classes, told = _classes(asked, recipe, known.get("CLASSES"))
    others = [section.model for section in (recipe.teacher, *recipe.peers) if section is not None]
    wanted = Wanted(
        known["CHANNELS"],
        recipe.data.image_size or known["SIZE"],
        classes,
        frozenset.intersection(frozenset({1, 3}), *(accepted_channels(model) for model in others)),
        asked.opset,
        asked.allow_code,
    )
    return wanted, told


def _classes(asked: Asked, recipe: Recipe, of_the_set: int | None) -> tuple[int, str]:
    if needs_of(recipe).backbone:
        if asked.classes is not None:
            raise UserError(
                f"--classes: the method {recipe.method['name']} trains a backbone, which has none"
            )
        return 0, "recipe"
    if of_the_set is not None:
        if asked.classes not in (None, of_the_set):
            raise UserError(f"--classes: the data set {recipe.data.dataset} has {of_the_set}")
        return of_the_set, "recipe"
    if asked.classes is not None:
        return asked.classes, "option"
    root = asked.data or recipe.data.root
    if root is not None and recipe.data.labels != "none":
        section = recipe.data.model_copy(update={"root": root})
        names = discovery.load("dataset", recipe.data.dataset).class_names(section)
        if names:
            return len(names), "data"
    return CLASSES, "default"


def _names(
    asked: Asked, recipe: Recipe | None, wanted: Wanted
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """The students to try, and those of the ladder that are left out: as large as the teacher, or larger."""
    if asked.students:
        return checked(asked.students, wanted), []
    names = ladder(wanted.side)
    if recipe is None:
        return names, []
    left_out = []
    if recipe.teacher is not None:
        largest = parameters_of(recipe.teacher.model, wanted)
        sizes = {name: parameters_of(name, wanted) for name in names if name != recipe.student.model}
        left_out = [
            {"student": name, "params": params} for name, params in sizes.items() if params >= largest
        ]
    gone = {entry["student"] for entry in left_out}
    return tuple(dict.fromkeys([recipe.student.model, *(n for n in names if n not in gone)])), left_out


def _check_out(asked: Asked) -> None:
    if asked.out is None:
        return
    if asked.recipe is None:
        raise UserError("--out: is a copy of a --recipe with the student in it, and none is given")
    if asked.out.suffix not in {".yaml", ".yml"}:
        raise UserError(f"--out {asked.out}: expected a name that ends in .yaml")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", asked.out.stem) is None:
        raise UserError(
            f"--out {asked.out}: its name becomes the recipe's; only letters, digits, '.', '_' and '-'"
        )
    if asked.out.exists():
        raise UserError(f"--out {asked.out}: exists; choose another name")
    if not asked.out.absolute().parent.is_dir():
        raise UserError(f"--out {asked.out}: there is no folder {asked.out.parent}")


def _write_recipe(out: Path, recipe: Recipe, row: dict[str, Any], asked: Asked, progress: Progress) -> None:
    """A copy of the recipe, complete, under the name of its file, with the answer as its student."""
    student = recipe.student
    if student.model != row["student"]:
        if student.weights is not None or student.taps is not None:
            lost = [key for key in ("weights", "taps") if getattr(student, key) is not None]
            progress.warn(
                f"{out}: left out student.{' and student.'.join(lost)}, which were {student.model}'s"
            )
        student = NetworkSection(model=row["student"])
    threads = "1 thread" if asked.threads == 1 else f"threads {asked.threads}"
    head = (
        f"# {recipe.name} with the student that fits {asked.budget.strip()}: {row['student']}\n#\n"
        f"# Measured untrained, {threads}, batch {asked.batch}: {shown_latency(row)}\n"
    )
    write_text(out, head + recipe.replace(name=out.stem, student=student).to_yaml())
