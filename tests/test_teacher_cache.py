"""A run that keeps its teacher's outputs: the same bits hit or miss, shared by seeds and methods."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from kdcompress import pipeline
from kdcompress.errors import Interrupted, UserError
from kdcompress.networks.output_cache.rows import RowFiles
from kdcompress.progress import Progress
from kdcompress.run import teacher_cache
from kdcompress.run.opening import Request

ROOT = Path(__file__).parent.parent
SETTINGS = (
    "teacher.model=cifar/resnet14", "teacher.epochs=1", "teacher.min_top1=0", "train.epochs=4",
    "train.threads=1", "data.batch_size=100", "data.held_out=0.5", "teacher.cache.views=2",
    "optim.warmup=0", "bench.rounds=1",
)  # fmt: skip
EPOCHS, VIEWS, IMAGES = 4, 2, 719


class Runs:
    """Runs of the quickstart's data up to the end of the student's training, which share a user cache."""

    def __init__(self, folder):
        self.folder, self.cache = folder, folder / "cache"

    def distill(self, name, *settings, method=None, progress=None, resume=False):
        overrides = (*SETTINGS, *settings)
        request = Request(
            "quickstart", out=self.folder / name, overrides=overrides, method=method, resume=resume
        )
        errors = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
            patch.setenv("KDCOMPRESS_CACHE", str(self.cache))
            patch.setattr(pipeline, "deliver", _keep)
            patch.setattr(pipeline, "report", lambda *arguments, **options: {})
            pipeline.distill(request, progress or Progress())
        return errors.getvalue()

    def student(self, name):
        return (self.folder / name / "student.safetensors").read_bytes()

    @property
    def rows(self):
        return sorted(self.cache.glob("teacher-outputs/*/*.rows"))

    def forget(self):
        shutil.rmtree(self.cache / "teacher-outputs")


class Stopping(Progress):
    """Stops the student's training after some steps, as a job scheduler does."""

    def __init__(self, steps):
        super().__init__(quiet=True)
        self.steps = steps

    @contextlib.contextmanager
    def bar(self, description, total, done=0):
        self.left = self.steps if description.startswith("student") else -1
        yield self

    def report(self, text):
        pass

    def advance(self, amount=1, note=""):
        self.left -= amount
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def _keep(run, start, method, outcome, *others):
    """Stands for export and proof: keeps the trained student."""
    state = {key: value.contiguous() for key, value in outcome.state.items()}
    safetensors.torch.save_file(state, run.folder / "student.safetensors")


def counts(errors):
    """Returns the numbers of outputs that were computed and read."""
    (line,) = [line for line in errors.splitlines() if line.startswith("Teacher outputs: ")]
    words = line.replace(",", "").split()
    return int(words[2]), int(words[8])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = Runs(tmp_path_factory.mktemp("cache"))
    made.errors = made.distill("first")
    made.key = made.rows[0].parent.name
    return made


@pytest.fixture
def own(tmp_path, runs):
    """A copy of the first run's caches, to be spoilt."""
    shutil.copytree(runs.cache / "teachers", tmp_path / "cache" / "teachers")
    place = Path("cache", "teacher-outputs", runs.key)
    shutil.copytree(runs.folder / place, tmp_path / place)
    records = Path("cache", "teacher-outputs", "teachers")
    shutil.copytree(runs.folder / records, tmp_path / records)
    return Runs(tmp_path)


def test_the_teacher_computes_each_view_once(runs):
    computed, read = counts(runs.errors)
    # What the incomplete last batch of an epoch left out is computed in a later one, or at the end.
    assert computed == VIEWS * IMAGES
    assert 0 <= (EPOCHS - VIEWS) * 700 - read <= computed - VIEWS * 700
    assert [file.name for file in runs.rows] == ["view0000.rows", "view0001.rows"]
    assert "Teacher cache: 2 views of 719 images as pooled" in runs.errors
    assert "views: 2" in (runs.folder / "first" / "recipe.yaml").read_text()


def test_a_second_run_reads_everything_and_has_the_same_bits(runs):
    computed, read = counts(runs.distill("again"))
    assert (computed, read) == (0, EPOCHS * 700)
    assert runs.student("again") == runs.student("first")


@pytest.mark.parametrize(
    ("settings", "method"),
    [(("seed=1",), None), (("seed=3", "student.model=cifar/resnet14"), None), ((), "rkd")],
    ids=["another seed", "another student", "another method"],
)
def test_runs_share_it(runs, settings, method):
    errors = runs.distill(f"shared {len(settings)} {method}", *settings, method=method)
    assert counts(errors) == (0, EPOCHS * 700)


def test_a_teacher_or_an_augmentation_of_its_own_has_a_cache_of_its_own(runs):
    before = len(list((runs.cache / "teacher-outputs").iterdir()))
    computed, _ = counts(runs.distill("others", "teacher.cache.seed=5"))
    assert computed == VIEWS * IMAGES
    assert len(list((runs.cache / "teacher-outputs").iterdir())) == before + 1


def test_an_empty_a_damaged_and_a_cut_cache_end_in_the_same_bits(own, runs):
    own.forget()
    own.distill("empty")
    assert own.student("empty") == runs.student("first")
    draw = random.Random(0)
    for file in own.rows:
        content = bytearray(file.read_bytes())
        for _ in range(100):
            place = draw.randrange(8 * len(content))
            content[place // 8] ^= 1 << place % 8
        file.write_bytes(content[: draw.randrange(len(content) // 2, len(content))])
    computed, _ = counts(own.distill("damaged"))
    assert 0 < computed < VIEWS * IMAGES
    assert own.student("damaged") == runs.student("first")


def test_a_run_that_is_stopped_goes_on_in_the_same_bits_with_what_it_kept(own, runs):
    own.forget()
    with pytest.raises(Interrupted):
        own.distill("stopped", progress=Stopping(10))  # in the second epoch, which fills the second view
    computed, read = counts(own.distill("stopped", resume=True))
    assert own.student("stopped") == runs.student("first")
    assert computed < VIEWS * IMAGES
    assert read > (EPOCHS - VIEWS) * 600


def test_outputs_of_another_teacher_in_its_place_are_not_used(own, runs):
    errors = own.distill("other", "teacher.seed=9")
    (line,) = [line for line in errors.splitlines() if line.startswith("Teacher outputs: ")]
    theirs = Path(line.split()[-1])
    mine = theirs.parent / runs.key
    assert theirs.name != runs.key
    for file in theirs.glob("*.rows"):
        shutil.copy(file, mine / file.name)
    # The name of a file's folder is in the sums of its rows, so none of them is there.
    assert counts(own.distill("mine")) == counts(runs.errors)
    assert own.student("mine") == runs.student("first")
    width = json.loads((mine / "key.json").read_text())["width"]
    source, target, every = RowFiles(theirs, width), RowFiles(mine, width), np.arange(2 * IMAGES)
    for file in theirs.glob("*.rows"):
        rows, present = source.read(file.name, every)
        target.write(file.name, every[present], rows[present])
    errors = own.distill("forged")
    assert "its outputs differ from those of the teacher by up to" in errors
    assert "Teacher outputs:" not in errors


def test_reading_alone_needs_every_row(own, runs):
    own.distill("read", "teacher.cache.mode=read")
    assert own.student("read") == runs.student("first")
    own.rows[0].unlink()
    with pytest.raises(UserError, match="mode: read, but of a batch of 100 the outputs for 100 are not in"):
        own.distill("gone", "teacher.cache.mode=read")


def test_turned_views_are_kept_completed_and_checked_by_their_turn(tmp_path):
    runs, settings = Runs(tmp_path), ("teacher.cache.views=4", "train.epochs=2", "method.head_epochs=2")
    computed, _ = counts(runs.distill("first", *settings, method="sskd"))
    assert computed == 4 * IMAGES
    names = ["view0000.rows", "view0001-turn1.rows", "view0002-turn2.rows", "view0003-turn3.rows"]
    assert [file.name for file in runs.rows] == names
    errors = runs.distill("again", "seed=1", *settings, method="sskd")
    assert counts(errors)[0] == 0
    assert "about 100 % are there already" in errors
    # Rows with sound sums and other outputs, of a turned view alone.
    folder = runs.rows[0].parent
    files = RowFiles(folder, json.loads((folder / "key.json").read_text())["width"])
    rows, _ = files.read(names[2], np.arange(2 * IMAGES))
    files.close()
    runs.rows[2].unlink()
    files.write(names[2], np.arange(len(rows)), np.roll(rows, 7, axis=0))
    files.close()
    assert "its outputs differ from those of the teacher" in runs.distill("forged", *settings, method="sskd")


@pytest.mark.exhaustive
def test_two_processes_fill_one_cache(tmp_path, runs):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += ["-m", "kdcompress", "distill", "--recipe", "quickstart", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, *(word for setting in SETTINGS for word in ("--set", setting))],
        env={**os.environ, "KDCOMPRESS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    computed, read = counts(done.stderr)
    assert computed == VIEWS * IMAGES
    assert EPOCHS * 700 - computed <= read <= (EPOCHS - VIEWS) * 700
    assert len(Runs(tmp_path).rows) == VIEWS
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["student"]["top1"] > 0.2


def test_maps_are_computed_at_every_step_and_the_run_says_so(runs):
    errors = runs.distill("maps", method="at")
    assert "teacher.cache: off, since at reads maps of the teacher's stages" in errors
    assert "cache: 'off'" in (runs.folder / "maps" / "recipe.yaml").read_text()


def test_a_cpu_of_other_instructions_has_a_cache_of_its_own_in_bf16(monkeypatch):
    def device(precision, kind="cpu"):
        return teacher_cache._device(SimpleNamespace(device=torch.device(kind), precision=precision))

    here = device(torch.bfloat16)
    monkeypatch.setattr(teacher_cache, "instruction_sets", lambda: ["some other"])
    assert device(torch.bfloat16) != here
    assert device(None) == "cpu"
    assert device(torch.bfloat16, "cuda") == "cuda"
