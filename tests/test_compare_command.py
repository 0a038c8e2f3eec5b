"""`kdcompress compare` on digits: its runs, the page, and what a resume does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from click.testing import CliRunner

from kdcompress.atomic import sha256_of
from kdcompress.cli import main
from kdcompress.networks.build import build
from kdcompress.tools import grid_runner

SHORT = ("train.epochs=1", "train.max_steps=2", "teacher.epochs=1", "teacher.min_top1=0", "bench.rounds=1")


CELLS = [f"cells/{method}--cifar-resnet8/seeds/0" for method in ("none", "kd")]
GRID = ("--methods", "none,kd", "--seeds", 1)


def words(*arguments):
    settings = (word for item in SHORT for word in ("--set", item))
    return ["compare", "quickstart", *map(str, arguments), *settings]


def compare(*arguments):
    return CliRunner().invoke(main, words(*arguments))


def students(folder):
    """The trained weights of each run."""
    return [sha256_of(folder / cell / "student.safetensors") for cell in CELLS]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grids") / "grid"
    done = compare(*GRID, "--out", folder, "--json")
    assert done.exit_code == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_the_runs_are_compared_with_the_first_method(grid):
    folder, told = grid
    none, kd = told["runs"]
    assert (told["reference"], none["name"], kd["name"]) == ("none", "none", "kd")
    assert none["difference"] is None
    assert {"points", "ci95", "verdict"} <= set(kd["difference"])
    # One student, one time, measured for both.
    assert none["p50_ms"] == kd["p50_ms"] > 0
    assert told["failed"] == []
    for method in ("none", "kd"):
        results = json.loads((folder / f"cells/{method}--cifar-resnet8/seeds/0/results.json").read_text())
        assert (results["teacher"] is None) == (method == "none")


def test_the_page_has_the_picture_of_the_choice(grid):
    page = (grid[0] / "comparison.html").read_text()
    assert "Accuracy, time and size" in page
    assert "Compared with none, for the same student and the same seeds." in page


def test_a_resume_runs_nothing_that_is_done_and_anything_else_is_refused(grid, monkeypatch):
    def never(*arguments):
        raise AssertionError("a run was started")

    monkeypatch.setattr(grid_runner, "_start", never)
    again = compare(*GRID, "--out", grid[0], "--json", "--resume")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == grid[1]
    for options in (["--methods", "none,kd"], ["--methods", "none", "--resume"]):
        refused = compare(*options, "--seeds", 1, "--out", grid[0])
        assert refused.exit_code == 2
        assert "comparison" in refused.stderr


def test_a_grid_that_was_killed_goes_on_to_the_same_students(grid, tmp_path):
    folder = tmp_path / "grid"
    program = [sys.executable, "-m", "kdcompress", *words(*GRID, "--out", folder)]
    log = folder / CELLS[1] / "log.jsonl"
    with (tmp_path / "told").open("w") as told, subprocess.Popen(program, stdout=told, stderr=told) as killed:
        while not (log.is_file() and log.stat().st_size):
            assert killed.poll() is None, (tmp_path / "told").read_text()
            time.sleep(0.02)
        runs = psutil.Process(killed.pid).children(recursive=True)
        killed.send_signal(signal.SIGKILL)
    assert not psutil.wait_procs(runs, timeout=60)[1]
    kept = (folder / CELLS[0] / "results.json").stat().st_mtime_ns
    again = compare(*GRID, "--out", folder, "--json", "--resume")
    assert again.exit_code == 0, again.stderr
    assert (folder / CELLS[0] / "results.json").stat().st_mtime_ns == kept
    assert students(folder) == students(grid[0])
    assert json.loads(again.stdout)["runs"][1]["difference"] == grid[1]["runs"][1]["difference"]


@pytest.mark.exhaustive
def test_over_ray_the_students_are_the_same(grid, tmp_path):
    pytest.importorskip("ray")
    done = compare(*GRID, "--ray", "local", "--out", tmp_path / "grid", "--json")
    assert done.exit_code == 0, done.stderr
    assert students(tmp_path / "grid") == students(grid[0])


def test_of_several_teachers_one_is_taken_after_a_short_run_with_each(tmp_path):
    folder = tmp_path / "grid"
    named = ("cifar/resnet8", "cifar/wrn-16-1")
    done = compare("--methods", "kd", "--teachers", ",".join(named), "--seeds", 1, "--out", folder)
    assert done.exit_code == 0, done.stderr
    known = json.loads((folder / "teachers.json").read_text())["teachers"]
    assert [entry["teacher"] for entry in known] == list(named)
    (taken,) = (entry for entry in known if entry["taken"])
    assert taken["held_out"] == max(entry["held_out"] for entry in known)
    for entry in known:
        reached = f"student {100 * entry['held_out']:.2f} % on held-out images"
        told = f"teacher {entry['teacher']}: {reached}{', taken' if entry is taken else ''}\n"
        assert told in done.stdout
    recipe = yaml.safe_load((folder / CELLS[1] / "recipe.yaml").read_text())
    assert recipe["teacher"]["model"] == taken["teacher"]
    page = (folder / "comparison.html").read_text()
    assert all(name in page for name in named)


def test_a_method_that_is_not_known_is_refused_before_anything_is_written(tmp_path):
    refused = compare("--methods", "none,kdd", "--out", tmp_path / "grid")
    assert refused.exit_code == 2
    assert "kdd" in refused.stderr
    assert not (tmp_path / "grid").exists()


def test_a_licence_that_is_not_known_stops_every_run_before_its_training(tmp_path):
    network = build("cifar/resnet20", num_classes=10, channels=1, image_size=(8, 8))
    torch.save(network.state_dict(), tmp_path / "a.pt")
    done = compare(
        "--methods", "kd", "--seeds", "1", "--license-policy", "permissive", "--out", tmp_path / "grid",
        "--set", "teacher.model=cifar/resnet20", "--set", f"teacher.weights={tmp_path / 'a.pt'}",
    )  # fmt: skip
    assert done.exit_code == 3
    assert "no run of the grid came to a student" in done.stderr
    assert "licence" in done.stderr
