"""Processes of a grid: order, exit codes, memory, and what is left when the grid is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from kdcompress.errors import Interrupted, UserError, WorldError
from kdcompress.tools import grid_progress, grid_runner
from kdcompress.tools.grid_progress import RunningNote, last_epoch
from kdcompress.tools.grid_runner import Task, run_here, run_on_ray

DONE = "pass"
WAITS = "import time; time.sleep(600)"


def task(folder, name, code):
    return Task(name, (sys.executable, "-c", code), folder / f"{name}.log")


def times(folder, name, *, waits_for=None):
    """Notes when it begins and ends; waits for another to begin, if named."""
    other = f"(here / '{waits_for}.began')"
    wait = f"\nwhile not {other}.exists(): time.sleep(0.02)" if waits_for else ""
    code = (
        f"import pathlib, time\nhere = pathlib.Path({str(folder)!r})\n"
        f"(here / '{name}.began').write_text(str(time.monotonic())){wait}\n"
        f"(here / '{name}.ended').write_text(str(time.monotonic()))"
    )
    return task(folder, name, code)


def moment(folder, name, what):
    return float((folder / f"{name}.{what}").read_text())


def test_the_first_runs_alone_and_the_others_side_by_side(tmp_path):
    tasks = [
        times(tmp_path, "first"),
        times(tmp_path, "second", waits_for="third"),
        times(tmp_path, "third", waits_for="second"),
    ]
    ended = []
    codes = run_here(tasks, workers=2, limit_by_memory=False, on_end=lambda task: ended.append(task.name))
    assert codes == {"first": 0, "second": 0, "third": 0}
    assert ended[0] == "first"
    begins = [moment(tmp_path, name, "began") for name in ("second", "third")]
    assert moment(tmp_path, "first", "ended") < min(begins)


def test_the_runs_under_way_are_told_again_and_again(tmp_path):
    seen = []
    tasks = [times(tmp_path, "first"), times(tmp_path, "second")]
    run_here(tasks, workers=1, limit_by_memory=False, on_poll=lambda now: seen.append([t.name for t in now]))
    assert seen[0] == ["first"]
    assert seen[-1] == ["second"]


def test_a_note_names_the_runs_and_their_epochs(tmp_path, monkeypatch):
    class Bar:
        def __init__(self):
            self.notes = []

        def advance(self, amount=1, note=""):
            self.notes.append((amount, note))

    monkeypatch.setattr(grid_progress, "SECONDS", 3600.0)
    bar = Bar()
    running = [Task(f"cells/kd--a/seeds/{n}", (), tmp_path / f"{n}.log") for n in range(3)]
    for begun in running[:2]:  # the third waits for a machine
        begun.log.touch()
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "log.jsonl").write_text('{"phase": "student", "epoch": 3}\n{"phase": "student", "ep')
    note = RunningNote(bar)
    note(running)
    note(running)  # at once: the logs are not read again
    assert bar.notes == [(0, "kd--a/seeds/0, kd--a/seeds/1 (student epoch 3)")]
    monkeypatch.setattr(grid_progress, "SECONDS", 0.0)
    RunningNote(bar)(running[:1])
    assert bar.notes[1:] == [(0, "kd--a/seeds/0")]


@pytest.mark.parametrize("content", [None, "", "no document\n", '["a list"]\n', '{"phase": "student"}\n'])
def test_a_log_without_an_epoch_gives_none(tmp_path, content):
    if content is not None:
        (tmp_path / "log.jsonl").write_text(content)
    assert last_epoch(tmp_path / "log.jsonl") == ""


def test_a_log_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "log.jsonl")
    assert last_epoch(tmp_path / "log.jsonl") == ""


def test_a_log_of_an_earlier_attempt_does_not_make_a_run_look_begun(tmp_path):
    log = tmp_path / "0.log"
    log.touch()
    os.utime(log, (1, 1))
    notes = []
    bar = SimpleNamespace(advance=lambda amount, note: notes.append(note))
    RunningNote(bar)([Task("cells/kd--a/seeds/0", (), log)])
    assert notes == [""]
    assert run_here([task(tmp_path, "0", DONE)], workers=1, limit_by_memory=False) == {"0": 0}
    RunningNote(bar)([Task("cells/kd--a/seeds/0", (), log)])
    assert notes == ["", "kd--a/seeds/0"]


def test_no_more_run_at_a_time_than_fit_into_the_free_memory(tmp_path, monkeypatch):
    class Memory:
        available = 0

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    run_here([times(tmp_path, name) for name in "abc"], workers=3, limit_by_memory=True)
    assert moment(tmp_path, "b", "ended") < moment(tmp_path, "c", "began")


def test_worker_processes_count_in_the_memory_of_a_run(tmp_path, monkeypatch):
    holds = "held = bytearray(300_000_000); import time; time.sleep(1.5)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {holds!r}], check=True)"
    peaks = []
    monkeypatch.setattr(grid_runner, "_fitting", lambda peak: peaks.append(peak) or 1)
    code = f"held = bytearray(300_000_000); {child}"
    run_here([task(tmp_path, "a", code), task(tmp_path, "b", DONE)], workers=2, limit_by_memory=True)
    assert peaks[0] > 600_000_000


def test_a_student_that_must_not_ship_ends_nothing(tmp_path):
    tasks = [task(tmp_path, "failed", "raise SystemExit(3)"), task(tmp_path, "fine", DONE)]
    assert run_here(tasks, workers=1, limit_by_memory=False) == {"failed": 3, "fine": 0}


@pytest.mark.parametrize(
    ("code", "kind"), [(2, UserError), (5, WorldError), (1, WorldError), (130, Interrupted)]
)
def test_any_other_end_stops_the_grid_with_the_runs_message(tmp_path, code, kind):
    says = f"import sys; sys.stderr.write('Warning: x\\nError: no such data'); raise SystemExit({code})"
    tasks = [task(tmp_path, "one", DONE), task(tmp_path, "bad", says), task(tmp_path, "long", WAITS)]
    began, before = time.monotonic(), psutil.Process().children()
    with pytest.raises(kind, match=r"^bad: no such data; its log is"):
        run_here(tasks, workers=2, limit_by_memory=False)
    assert time.monotonic() - began < 300  # the long one was stopped
    assert set(psutil.Process().children()) <= set(before)


def test_a_killed_grid_leaves_no_runs_behind(tmp_path):
    script = tmp_path / "grid.py"
    script.write_text(
        "import pathlib, sys\n"
        "from kdcompress.tools.grid_runner import Task, run_here\n"
        "code = 'import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))'\n"
        "code += '; time.sleep(600)'\n"
        f"words = (sys.executable, '-c', code, {str(tmp_path / 'pid')!r})\n"
        f"task = Task('a', words, pathlib.Path({str(tmp_path / 'log')!r}))\n"
        "run_here([task], workers=1, limit_by_memory=False)\n"
    )
    grid = subprocess.Popen([sys.executable, str(script)])
    pid = None
    while not pid:
        assert grid.poll() is None
        time.sleep(0.05)
        pid = (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()
    run = psutil.Process(int(pid))
    os.kill(grid.pid, signal.SIGKILL)
    grid.wait()
    run.wait(timeout=60)


def test_each_worker_has_a_gpu_of_its_own(tmp_path):
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    tasks = [
        Task(name, (sys.executable, "-c", code, str(tmp_path / name)), tmp_path / f"{name}.log")
        for name in "ab"
    ]
    run_here(tasks, workers=1, limit_by_memory=False, devices=["3"])
    assert [(tmp_path / name).read_text() for name in "ab"] == ["3", "3"]


@pytest.mark.exhaustive
def test_ray_runs_the_same_tasks(tmp_path):
    pytest.importorskip("ray")
    tasks = [
        times(tmp_path, "first"),
        times(tmp_path, "second"),
        task(tmp_path, "failed", "raise SystemExit(3)"),
    ]
    codes = run_on_ray(tasks, address="local", threads=1, gpus=0)
    assert codes == {"first": 0, "second": 0, "failed": 3}
    assert moment(tmp_path, "first", "ended") < moment(tmp_path, "second", "began")


NODE = {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}


@pytest.mark.parametrize(
    ("nodes", "needed", "told"),
    [
        ([NODE], {"CPU": 8, "GPU": 0}, "takes 8 CPU cores, and the largest machine .* has 4 CPU cores;"),
        ([NODE, NODE], {"CPU": 2, "GPU": 2}, "takes 2 CPU cores and 2 GPUs, .* has 4 CPU cores and 1 GPUs"),
        ([{**NODE, "Alive": False}], {"CPU": 1, "GPU": 0}, "has 0 CPU cores"),
    ],
)  # fmt: skip
def test_a_run_that_no_machine_of_the_cluster_can_take_is_refused(nodes, needed, told):
    with pytest.raises(UserError, match=told):
        grid_runner._check_nodes("here:1", nodes, needed)
    grid_runner._check_nodes("here:1", [NODE], {"CPU": 4, "GPU": 1})


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="kdcompress\\[ray\\]"):
        run_on_ray([task(tmp_path, "one", DONE)], address="local", threads=1, gpus=0)


def test_a_log_without_an_error_gives_its_last_line(tmp_path):
    log = tmp_path / "log"
    assert grid_runner.last_error(log) == "it left no message"
    log.write_text("one\nKilled\n")
    assert grid_runner.last_error(Path(log)) == "Killed"
