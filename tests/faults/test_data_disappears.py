"""A data set that disappears during a run is the world's fault: exit code 5, and --resume goes on."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kdcompress.cli import main
from kdcompress.train.trainer import Trainer

RECIPE = """
data: {dataset: imagefolder, image_size: 8, batch_size: 8, workers: 0, held_out: 0}
student: {model: cifar/resnet8}
method: {name: none}
train: {epochs: 3, max_steps: 3, threads: 1}
optim: {lr: 0.1}
bench: {rounds: 1}
"""


def image_folder(root):
    noise = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(10):
            pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_an_image_that_changes_under_a_pixel_cache_is_exit_code_5_with_resume(tmp_path, monkeypatch, kind):
    root, recipe = tmp_path / "data", tmp_path / "mine.yaml"
    image_folder(root)
    recipe.write_text(RECIPE)
    (tmp_path / "cache").write_text("no folder can be made here, so that pictures come from the files")
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))
    run_steps, paths = Trainer._run_steps, sorted(root.rglob("*.png"))
    before = {path: path.stat().st_mtime_ns for path in paths}

    def changes(self, *arguments):
        if self.at.epoch == 1:
            for path in paths:
                os.utime(path, ns=(1, 1))
        return run_steps(self, *arguments)

    monkeypatch.setattr(Trainer, "_run_steps", changes)
    options = ["--data", root, "--out", tmp_path / "run", "--set", f"data.pixel_cache={kind}", "-q"]
    arguments = ["distill", "--recipe", str(recipe), *map(str, options)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 5, (done.exception, done.stderr)
    assert done.stderr.splitlines()[-1].endswith(
        "was changed after the run had listed it: the data has changed since the run began; put it back and "
        "go on with --resume"
    )
    monkeypatch.setattr(Trainer, "_run_steps", run_steps)
    for path, mtime_ns in before.items():
        os.utime(path, ns=(mtime_ns, mtime_ns))
    done = CliRunner().invoke(main, [*arguments, "--resume"])
    assert done.exit_code == 0, done.stderr


def test_a_data_set_that_disappears_in_mid_run_is_exit_code_5_with_resume(tmp_path, monkeypatch):
    root, recipe = tmp_path / "data", tmp_path / "mine.yaml"
    image_folder(root)
    recipe.write_text(RECIPE)
    run_steps = Trainer._run_steps

    def disappears(self, *arguments):
        if self.at.epoch == 1 and root.exists():
            shutil.move(root, tmp_path / "elsewhere")
        return run_steps(self, *arguments)

    monkeypatch.setattr(Trainer, "_run_steps", disappears)
    arguments = [
        "distill",
        "--recipe",
        str(recipe),
        "--data",
        str(root),
        "--out",
        str(tmp_path / "run"),
        "-q",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 5, (done.exception, done.stderr)
    message = done.stderr.splitlines()[-1]
    assert message.endswith("the data has changed since the run began; put it back and go on with --resume")
    assert "No such file" in message
    monkeypatch.undo()
    shutil.move(tmp_path / "elsewhere", root)
    done = CliRunner().invoke(main, [*arguments, "--resume"])
    assert done.exit_code == 0, done.stderr
