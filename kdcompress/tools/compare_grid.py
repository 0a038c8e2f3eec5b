"""`kdcompress compare`: trains a recipe with several methods, students and seeds; writes one page.

1. `grid_plan` crosses the options and checks every cell before anything is written.
2. Of several teachers one is chosen, by a short run of the first cell with each.
3. `grid_runner` runs the cells, each of them an ordinary `kdcompress distill`.
4. One exported file of each student is timed, all of them together.
5. The page compares each method with the first one, for the same student and seeds.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdcompress.atomic import write_json
from kdcompress.cores import granted_cores
from kdcompress.documents import read_document
from kdcompress.errors import RESUMABLE, Interrupted, RunFailed
from kdcompress.progress import Progress
from kdcompress.report.comparison import Compared, document, figure_of, write_comparison
from kdcompress.report.record import read_run
from kdcompress.run_folder import RunFolder
from kdcompress.schemas.bench import Bench
from kdcompress.tasks.figures import selection_metric
from kdcompress.tools.bench import BenchRequest, bench
from kdcompress.tools.compare_runs import NAME, against
from kdcompress.tools.grid_plan import Cell, GridRequest, Plan, make_plan, record, slug, with_teacher
from kdcompress.tools.grid_progress import RunningNote
from kdcompress.tools.grid_runner import Task, last_error, run_here, run_on_ray

TEACHERS = "teachers.json"


def compare(request: GridRequest, progress: Progress) -> dict[str, Any]:
    """Runs a grid and writes its page.

    Args:
        request: The options.
        progress: Terminal output.

    Returns:
        The document of schema `kdcompress.comparison/1`, with `teachers` (how each did, and which was taken),
        `failed` (runs whose student must not ship) and the page's path as `file`.

    Raises:
        UserError: An option or a cell cannot be used.
        RunFailed: No run of the grid came to a student that may ship.
        KdcompressError: A run ended otherwise than by its gates; `--resume` continues.
    """
    plan = make_plan(request)
    folder = (request.out or Path("runs") / f"{plan.recipe}-grid").absolute()
    plan = record(plan, folder, request.resume)
    runner = _Runner(request, folder, plan, progress)
    try:
        teachers, cells = _choose_teacher(request, plan, runner)
        failed = runner.run(cells, "runs")
    except KeyboardInterrupt:
        begun = (RunFolder(folder / cell.folder) for cell in (*plan.probes, *plan.cells))
        kept = (
            RESUMABLE
            if any(run.has_saved() for run in begun)
            else "nothing was saved yet, run it again with --resume"
        )
        raise Interrupted(f"interrupted; {kept}") from None
    rows = _rows(cells, folder, failed)
    timings = _timings(request, rows, folder, progress)
    rows = [dataclasses.replace(row, p50_ms=timings.get(row.first.student)) for row in rows]
    path = folder / NAME
    messages = [f"{name}: did not ship: {reason}" for name, reason in failed.items()]
    first = cells[0].method
    write_comparison(rows, path, reference=first, teachers=teachers, failures=messages)
    result = {**document(rows, first), "teachers": teachers, "failed": messages, "file": str(path)}
    write_json(folder / "comparison.json", result)
    return result


class _Runner:
    """Runs cells that are not done yet.

    Args:
        request: The options.
        folder: The grid's.
        plan: For the threads of a run.
        progress: Terminal output.
    """

    def __init__(self, request: GridRequest, folder: Path, plan: Plan, progress: Progress) -> None:
        self.request, self.folder, self.plan, self.progress = request, folder, plan, progress

    def run(self, cells: Sequence[Cell], title: str) -> dict[str, str]:
        """Runs the cells.

        Returns:
            The reason of each run that failed, by its folder's name.

        Raises:
            KdcompressError: A run ended otherwise than by its gates.
        """
        waiting = [cell for cell in cells if RunFolder(self.folder / cell.folder).finished() is None]
        tasks = [self._task(cell) for cell in waiting]
        if tasks:
            first = tasks[0].log.with_suffix("")
            self.progress.say(f"Each run writes a line per epoch to its log.jsonl, as in {first}")
        with self.progress.bar(title, total=len(cells), done=len(cells) - len(waiting)) as bar:

            def ended(task: Task) -> None:
                bar.advance(note=task.name)
                bar.report(f"{title}: {task.name} has ended")

            codes = self._run(tasks, ended, RunningNote(bar)) if tasks else {}
        return {task.name: last_error(task.log) for task in tasks if codes[task.name] == 3}

    def _run(self, tasks: Sequence[Task], on_end: Any, on_poll: RunningNote) -> dict[str, int]:
        request, threads = self.request, self.plan.threads
        devices = _devices(request.device)
        if request.ray is not None:
            gpus = 1 if devices else 0
            return run_on_ray(
                tasks, address=request.ray, threads=threads, gpus=gpus, on_end=on_end, on_poll=on_poll
            )
        workers = request.jobs or len(devices) or max(1, granted_cores() // threads)
        return run_here(
            tasks,
            workers=workers,
            limit_by_memory=request.jobs is None,
            devices=[devices[number % len(devices)] for number in range(workers)] if devices else (),
            on_end=on_end,
            on_poll=on_poll,
        )

    def _task(self, cell: Cell) -> Task:
        run = self.folder / cell.folder
        run.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "kdcompress", "distill", *cell.options(self.request.recipe), "-q"]
        words += ["--out", str(run), "--resume", "--device", self.request.device]
        words += ["--threads", str(self.plan.threads)]
        words += ["--data", self.request.data] if self.request.data else []
        words += ["--allow-code"] if self.request.allow_code else []
        words += ["--license-policy", self.request.license_policy]
        return Task(cell.folder, tuple(words), run.with_name(f"{run.name}.log"))


def _devices(device: str) -> list[str]:
    """Returns the number of each GPU that runs can use, as `CUDA_VISIBLE_DEVICES` names them."""
    if device == "cpu":
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _choose_teacher(
    request: GridRequest, plan: Plan, runner: _Runner
) -> tuple[list[dict[str, Any]], tuple[Cell, ...]]:
    """Runs the probes; returns what each teacher came to, and the cells with the one that is taken."""
    if not plan.probes:
        return [], plan.cells
    failed = runner.run(plan.probes, "teachers")
    found = []
    for teacher, probe in zip(request.teachers, plan.probes, strict=True):
        entry: dict[str, Any] = {"teacher": teacher, "failed": failed.get(probe.folder), "taken": False}
        if entry["failed"] is None:
            entry |= _probed(runner.folder / probe.folder)
        found.append(entry)
    known = [entry for entry in found if entry["failed"] is None]
    if not known:
        reason = f"{found[0]['teacher']}: {found[0]['failed']}"
        raise RunFailed(f"--teachers: no short run came to a student; {reason}")
    # Of equals the smaller one, whose forward pass costs less.
    best = max(known, key=lambda entry: (entry["held_out"], -(entry["params"] or 0)))
    best["taken"] = True
    write_json(runner.folder / TEACHERS, {"schema": "kdcompress.teachers/1", "teachers": found})
    return found, with_teacher(request, plan.cells, best["teacher"])


def _probed(folder: Path) -> dict[str, Any]:
    """Returns the teacher's figures and the held-out figure of the student that it taught."""
    run = read_run(folder)
    lines = [line for line in run.log if line["phase"].split("/")[0] == "student" and line.get("held_out")]
    figures = lines[-1]["held_out"]
    figure = selection_metric(figures)
    teacher = run.results["teacher"]
    return {
        "figure": figure,
        "held_out": figures[figure],
        "own_top1": teacher.get("top1"),
        "params": teacher.get("params"),
        "epochs": run.recipe["train"]["epochs"],
    }


def _rows(cells: Sequence[Cell], folder: Path, failed: dict[str, str]) -> list[Compared]:
    """Returns a row per method and student, with its difference to the first method."""
    rows: list[Compared] = []
    first_of: dict[str, Compared] = {}
    firsts = []
    members_of: dict[str, list[Cell]] = {}
    for cell in cells:
        members_of.setdefault(cell.row, []).append(cell)
    several = len({cell.student for cell in cells}) > 1
    for members in members_of.values():
        records = tuple(read_run(folder / cell.folder) for cell in members if cell.folder not in failed)
        if not records:
            continue
        student = members[0].student
        name = f"{members[0].method}, {student}" if several else members[0].method
        rows.append(Compared(name, records, incomplete=len(records) < len(members)))
        firsts.append(first_of.setdefault(student, rows[-1]))
    if not rows:
        raise RunFailed("no run of the grid came to a student: " + "; ".join(failed.values()))
    _, key = figure_of(rows)
    return [
        row if row is first else against(first, row, key) for row, first in zip(rows, firsts, strict=True)
    ]


def _timings(
    request: GridRequest, rows: Sequence[Compared], folder: Path, progress: Progress
) -> dict[str, float]:
    """Times one file of each student, all together; returns the median call in ms by student.

    The weights do not change the time of a network, so that one file stands for all of its trainings.
    """
    files = {row.first.student: row.first.folder / "student.onnx" for row in rows}
    # A file for each device, so that a resume for another one times the students there.
    result = folder / f"bench-{slug(request.target)}.json"
    if not result.exists():
        bench(
            BenchRequest(
                files=tuple(f"{student}={path}" for student, path in files.items()),
                threads=tuple(rows[0].first.recipe["bench"]["threads"][:1]),
                rounds=rows[0].first.recipe["bench"]["rounds"],
                runtimes=("onnxruntime",),
                target=request.target,
                out=result,
            ),
            progress,
        )
    results = read_document(result, Bench)["results"]
    return {entry["artefact"]: entry["latency_ms"]["p50"] for entry in results}


def check_shipped(result: dict[str, Any]) -> None:
    """Fails if a run of the grid did not ship.

    Raises:
        RunFailed: With the number of runs.
    """
    if result["failed"]:
        raise RunFailed(f"{len(result['failed'])} runs did not ship; the page {result['file']} says which")
