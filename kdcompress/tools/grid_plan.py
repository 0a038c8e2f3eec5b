"""The cells of `kdcompress compare`: one recipe crossed with methods, students and seeds."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kdcompress.atomic import write_json
from kdcompress.cores import granted_cores
from kdcompress.documents import read_document
from kdcompress.errors import RecipeError, RunFolderError, UserError
from kdcompress.recipe import Recipe, resolve_recipe
from kdcompress.run.schedule import STEPS
from kdcompress.run_folder import create_folder
from kdcompress.schemas.grid import Grid

SCHEMA = "kdcompress.grid/1"
FILE = "grid.json"
PROBE_SHARE = 0.2
"""Of the epochs: the length of the runs by which a teacher is chosen."""
_OF_TEACHER = re.compile(r"teacher[.=]")


@dataclass(frozen=True, slots=True)
class GridRequest:
    """The options of `kdcompress compare`.

    Args:
        recipe: Shipped name or YAML file that every cell starts from.
        methods: `NAME` or `NAME:KEY=VALUE:...` each; empty: the recipe's. The first is what the others are
            compared with.
        students: `FAMILY/NAME` each; empty: the recipe's.
        teachers: `FAMILY/NAME` or `FAMILY/NAME@WEIGHTS` each; empty: the recipe's.
        seeds: Runs of each method and student.
        data: Folder of the data; None: the recipe's.
        out: Folder of the grid; None: `runs/RECIPE-grid`.
        overrides: Changes to the recipe in every cell.
        jobs: Runs side by side; None: as many as cores, memory or GPUs allow.
        ray: Address of a Ray cluster, or `local`; None: processes of this machine.
        resume: True: continue the grid in `out`.
        target: Device on which the students are timed.
        device: Device of the training: auto, cpu or cuda.
        allow_code: True if `python:` networks may be built.
        license_policy: `permissive`: no run begins if a licence forbids commercial use or is not known.
    """

    recipe: str
    methods: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    seeds: int = 5
    data: str | None = None
    out: Path | None = None
    overrides: tuple[str, ...] = ()
    jobs: int | None = None
    ray: str | None = None
    resume: bool = False
    target: str = "local"
    device: str = "auto"
    allow_code: bool = False
    license_policy: str = "any"


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid.

    Args:
        method: As the user wrote it.
        student: `FAMILY/NAME`.
        folder: Run folder, below the grid's.
        name: `--method` of the run; None: the recipe's method with its settings.
        overrides: `--set` of the run.
    """

    method: str
    student: str
    folder: str
    name: str | None
    overrides: tuple[str, ...]

    @property
    def row(self) -> str:
        """Folder that the seeds of one method and student have in common."""
        return self.folder.split("/seeds/")[0]

    def options(self, recipe: str) -> list[str]:
        """Returns the options of `kdcompress distill`, without data, folder and threads."""
        method = [] if self.name is None else ["--method", self.name]
        return ["--recipe", recipe, *method, *(word for item in self.overrides for word in ("--set", item))]


@dataclass(frozen=True, slots=True)
class Plan:
    """The runs of a grid; a resume demands the same.

    Args:
        recipe: Name of the recipe.
        cells: In the order in which they begin: all methods and students of a seed before the next seed.
        probes: A short run for each teacher that can be chosen; empty: there is no choice.
        threads: CPU threads of each run. A run's bits depend on them, so a resume keeps them.
    """

    recipe: str
    cells: tuple[Cell, ...]
    probes: tuple[Cell, ...]
    threads: int


def make_plan(request: GridRequest) -> Plan:
    """Crosses the options and checks every cell's recipe.

    Raises:
        UserError: A method, student or teacher is named twice or not as expected.
        RecipeError: With the problems of all cells.
    """
    base = _resolved(request, None, request.overrides)
    methods = _distinct("--methods", request.methods) or (str(base.method["name"]),)
    students = _distinct("--students", request.students) or (base.student.model,)
    teachers = _distinct("--teachers", request.teachers)
    cells = tuple(
        _cell(request, base, method, student, number)
        for number in range(request.seeds)
        for student in students
        for method in methods
    )
    probes, problems = _probes(request, base, cells)
    if "onnx" not in base.export.formats:
        problems.append("export.formats: add onnx, since one such file of each student is timed")
    if len(teachers) == 1:
        cells = with_teacher(request, cells, teachers[0])
    for cell in (*(cell for cell in cells if cell.folder.endswith("/seeds/0")), *probes):
        problems += _problems(request, cell)
    if problems:
        raise RecipeError(request.recipe, list(dict.fromkeys(problems)))
    workers = request.jobs or min(len(cells), granted_cores())
    return Plan(base.name, cells, probes, max(1, granted_cores() // workers))


def with_teacher(request: GridRequest, cells: Sequence[Cell], teacher: str) -> tuple[Cell, ...]:
    """Returns the cells with another teacher, where their method has one.

    Args:
        request: The options.
        cells: As planned.
        teacher: `FAMILY/NAME` or `FAMILY/NAME@WEIGHTS`.
    """
    model, _, weights = teacher.partition("@")
    own = (f"teacher.model={model}", *([f"teacher.weights={weights}"] if weights else []))
    return tuple(
        dataclasses.replace(cell, overrides=(*own, *cell.overrides)) if _has_teacher(request, cell) else cell
        for cell in cells
    )


def record(plan: Plan, folder: Path, resume: bool) -> Plan:
    """Writes the plan, or checks it against that of the grid in the folder.

    Returns:
        The plan, with the threads that the grid was started with.

    Raises:
        RunFolderError: The folder has other files, a grid and no `--resume`, or another grid.
    """
    file = folder / FILE
    document = {"schema": SCHEMA, **json.loads(json.dumps(asdict(plan)))}
    if not file.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise RunFolderError(
                f"{folder}: has files that are no comparison; choose another folder with --out"
            )
        create_folder(folder)
        write_json(file, document)
        return plan
    if not resume:
        raise RunFolderError(
            f"{folder}: has a comparison already; continue with --resume, or choose another folder with --out"
        )
    recorded = read_document(file, Grid, failure=RunFolderError)
    if {**recorded, "threads": None} != {**document, "threads": None}:
        raise RunFolderError(
            f"{folder}: has a comparison of other runs; --resume takes the options that it was started with"
        )
    return dataclasses.replace(plan, threads=recorded["threads"])


def _cell(request: GridRequest, base: Recipe, method: str, student: str, number: int) -> Cell:
    name, *settings = method.split(":")
    for setting in settings:
        if not re.fullmatch(r"[A-Za-z_][\w.]*=.+", setting):
            raise UserError(f"--methods {method}: {setting!r} is no KEY=VALUE; write it as crd:weight=0.8")
    overrides = [*request.overrides, *(f"method.{setting}" for setting in settings)]
    if student != base.student.model:
        overrides += [f"student.model={student}", "student.taps=null"]
        if all(peer.model == base.student.model for peer in base.peers):
            overrides += [f"peers.{index}.model={student}" for index in range(len(base.peers))]
    overrides.append(f"seed={base.seed + number}")
    folder = f"cells/{slug(method)}--{slug(student)}/seeds/{number}"
    cell = Cell(method, student, folder, name if request.methods else None, tuple(overrides))
    if base.teacher is not None and not _has_teacher(request, cell):
        # Settings of the teacher belong to the cells that have one, and are an error in the others.
        return dataclasses.replace(cell, overrides=tuple(i for i in overrides if not _OF_TEACHER.match(i)))
    return cell


def _has_teacher(request: GridRequest, cell: Cell) -> bool:
    overrides = [item for item in cell.overrides if not _OF_TEACHER.match(item)]
    try:
        return _resolved(request, cell.name, overrides).teacher is not None
    except RecipeError:
        return True  # whatever is wrong is reported with the cell's other problems


def _probes(request: GridRequest, base: Recipe, cells: Sequence[Cell]) -> tuple[tuple[Cell, ...], list[str]]:
    """Returns a short run of the first cell that has a teacher, for each of the teachers, and problems."""
    if not request.teachers:
        return (), []
    taught = next((cell for cell in cells if _has_teacher(request, cell)), None)
    if taught is None:
        return (), ["--teachers: none of the methods has a teacher; leave it out"]
    if len(request.teachers) == 1:
        return (), []
    if base.data.held_out == 0:
        return (), ["--teachers: are compared on held-out images; set data.held_out above 0"]
    if base.train.epochs == "auto":
        most = round(PROBE_SHARE * STEPS)
        length = f"train.max_steps={min(most, base.train.max_steps or most)}"
    else:
        length = f"train.epochs={max(1, round(PROBE_SHARE * base.train.epochs))}"
    probes = []
    for number, teacher in enumerate(request.teachers):
        (probe,) = with_teacher(request, [taught], teacher)
        overrides = (*probe.overrides, length, "train.ship=last")
        folder = f"teachers/{number}-{slug(teacher)}"
        probes.append(dataclasses.replace(probe, folder=folder, overrides=overrides))
    return tuple(probes), []


def _problems(request: GridRequest, cell: Cell) -> list[str]:
    try:
        _resolved(request, cell.name, cell.overrides)
    except RecipeError as error:
        return [f"{cell.method}, {cell.student}: {problem}" for problem in error.problems]
    return []


def _resolved(request: GridRequest, method: str | None, overrides: Sequence[str]) -> Recipe:
    return resolve_recipe(request.recipe, overrides, method=method, allow_code=request.allow_code).recipe


def _distinct(option: str, values: Sequence[str]) -> tuple[str, ...]:
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{option}: {value} is named twice; name each once")
    return tuple(values)


def slug(text: str) -> str:
    """Returns a text as a part of a path."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", text).strip("-.")
