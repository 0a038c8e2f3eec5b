"""`kdcompress compare` on digits: its runs, the page, and what a resume does."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from kdcompress.cli import main
from kdcompress.networks.build import build
from kdcompress.tools import grid_runner

SHORT = ("train.epochs=1", "train.max_steps=2", "teacher.epochs=1", "teacher.min_top1=0", "bench.rounds=1")


def compare(*arguments):
    words = ["compare", "quickstart", *map(str, arguments)]
    return CliRunner().invoke(main, [*words, *(word for item in SHORT for word in ("--set", item))])


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grids") / "grid"
    done = compare("--methods", "none,kd", "--seeds", 1, "--out", folder, "--json")
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
    again = compare("--methods", "none,kd", "--seeds", 1, "--out", grid[0], "--json", "--resume")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == grid[1]
    for options in (["--methods", "none,kd"], ["--methods", "none", "--resume"]):
        refused = compare(*options, "--seeds", 1, "--out", grid[0])
        assert refused.exit_code == 2
        assert "comparison" in refused.stderr


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
