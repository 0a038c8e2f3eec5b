"""`teacher.cache.mode: read` trains without the teacher: it is built afterwards, for the report alone."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import io
import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdcompress import pipeline
from kdcompress.errors import RunFailed, UserError
from kdcompress.progress import Progress
from kdcompress.recipe import load_recipe
from kdcompress.run.opening import Request
from kdcompress.run.teacher_record import why_built
from kdcompress.train import result_store

BUILDER = """
    import torch
    from kdcompress.networks.build import build as built

    CALLS = []

    def build(num_classes, channels, image_size, seed={seed}):
        CALLS.append("built")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return built("cifar/resnet8", num_classes=num_classes, channels=channels, image_size=image_size)
"""
SETTINGS = (
    "teacher.model=python:recorded:build", "teacher.pretrained=true", "teacher.train=never",
    "teacher.min_top1=0", "train.epochs=2", "train.threads=1", "data.batch_size=100", "data.held_out=0.5",
    "teacher.cache.views=1", "optim.warmup=0", "bench.rounds=1", "export.formats=[onnx]",
)  # fmt: skip


class Runs:
    """Runs of the digits with a teacher whose builder notes its calls, and the ends of the trainings."""

    def __init__(self, folder, patch):
        self.folder, self.patch = folder, patch
        patch.syspath_prepend(str(folder))
        patch.setattr(sys, "dont_write_bytecode", True)  # two versions may be of one second
        self.write(seed=1)
        patch.chdir(folder)
        patch.setattr(pipeline, "run_training", self._training(pipeline.run_training))

    def write(self, **values):
        (self.folder / "recorded.py").write_text(textwrap.dedent(BUILDER).format(**values))
        sys.modules.pop("recorded", None)
        importlib.invalidate_caches()
        self.module = importlib.import_module("recorded")

    def _training(self, run_training):
        def training(*arguments):
            outcome = run_training(*arguments)
            self.module.CALLS.append("trained")
            torch.save(outcome.state, self.folder / "student.pt")
            return outcome

        return training

    def distill(self, name, *settings, allow_code=True, **more):
        self.module.CALLS.clear()
        request = Request(
            "quickstart", out=self.folder / name, overrides=(*SETTINGS, *settings), allow_code=allow_code,
            **more,
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as errors:
            patch.setenv("KDCOMPRESS_CACHE", str(self.folder / "cache"))
            pipeline.distill(request, Progress())
        self.errors = errors.getvalue()
        self.student = (self.folder / "student.pt").read_bytes()
        return self.module.CALLS

    def results(self, name):
        return json.loads((self.folder / name / "results.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        made = Runs(tmp_path_factory.mktemp("runs"), patch)
        assert made.distill("filled")[0] == "built"
        made.filled = made.student
        yield made
    sys.modules.pop("recorded", None)


NAMES = ("filled", "read")


def test_the_teacher_is_built_after_the_training_and_the_student_has_the_same_bits(runs):
    calls = runs.distill("read", "teacher.cache.mode=read")
    assert calls[0] == "trained"
    assert "built" in calls
    assert runs.student == runs.filled
    assert "Teacher outputs: 0 images of a view computed" in runs.errors


def test_all_figures_of_the_teacher_are_in_the_results(runs):
    filled, read = (runs.results(name) for name in NAMES)
    assert read["teacher"] == filled["teacher"]
    assert read["training"]["teacher_held_out"] == filled["training"]["teacher_held_out"]
    assert read["student"]["agreement"] == filled["student"]["agreement"]
    filled, read = (json.loads((runs.folder / name / "manifest.json").read_text()) for name in NAMES)
    assert read["teacher"] == filled["teacher"]


@pytest.mark.exhaustive
def test_another_seed_and_method_read_it_too(runs):
    assert runs.distill("others", "teacher.cache.mode=read", "seed=3", method="rkd")[0] == "trained"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("teacher.cache.seed=4",), "mode: read, but of a batch of 100 the outputs for 100 are not in"),
        (("data.held_out=0.4",), "holds nothing about this teacher on these images; run it once with"),
        (("teacher.pretrained=auto",), "auto builds python:recorded:build to find out, and .* set true or"),
    ],
    ids=["rows", "record", "own weights"],
)
def test_what_is_not_kept_is_said_without_building_anything(runs, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        runs.distill(tmp_path / "run", "teacher.cache.mode=read", *settings)
    assert runs.module.CALLS == []


def test_code_is_not_run_without_leave(runs, tmp_path):
    with pytest.raises(UserError, match="pass --allow-code to let it"):
        runs.distill(tmp_path / "run", "teacher.cache.mode=read", allow_code=False)


def test_a_teacher_that_turns_out_to_be_another_ends_the_run(runs, tmp_path):
    build = runs.module.build
    with pytest.MonkeyPatch.context() as patch:
        # As if a file that the builder reads had changed.
        patch.setattr(runs.module, "build", lambda num_classes, channels, image_size: build(
            num_classes, channels, image_size, seed=2
        ))  # fmt: skip
        with pytest.raises(RunFailed, match="its weights are not those that filled the cache"):
            runs.distill(tmp_path / "run", "teacher.cache.mode=read")


def test_a_builder_with_other_code_is_another_teacher(runs, tmp_path):
    runs.write(seed=7)
    with pytest.raises(UserError, match="holds nothing about this teacher"):
        runs.distill(tmp_path / "run", "teacher.cache.mode=read")
    runs.write(seed=1)


def test_a_damaged_record_counts_as_none(runs, tmp_path):
    (note,) = Path(runs.folder, "cache", "teacher-outputs", "teachers").glob("*.json")
    content = note.read_text()
    note.write_text(content.replace('"features": 64', '"features": "many"'))
    with pytest.raises(UserError, match="holds nothing about this teacher"):
        runs.distill(tmp_path / "run", "teacher.cache.mode=read")
    note.write_text(content)


def test_a_record_of_other_shapes_counts_as_none(runs, tmp_path):
    folder = Path(runs.folder, "cache", "teacher-outputs", "teachers")
    key = next(folder.glob("*.json")).stem
    content = {path: path.read_bytes() for path in folder.iterdir()}
    stored = result_store.read_stored(folder, key, key)
    for state in ({}, {"weight": stored.state["weight"][:, 1:]}, {"bias": stored.state["bias"]}):
        digest = hashlib.sha256(result_store.content_of(state)).hexdigest()
        other = dataclasses.replace(stored, state=state, sha256=digest)
        result_store.write_stored(folder, key, other)
        with pytest.raises(UserError, match="holds nothing about this teacher"):
            runs.distill(tmp_path / "run", "teacher.cache.mode=read")
    for path, before in content.items():
        path.write_bytes(before)


def data(labels=(0, 1), labelled=2):
    return SimpleNamespace(held_out=SimpleNamespace(labels=torch.tensor(labels)), labelled=labelled)


@pytest.mark.parametrize(
    ("method", "images", "why"),
    [
        ("kd", data(), None),
        ("rkd", data(), None),
        ("at", data(), "at reads maps of its stages"),
        ("ab", data(), "ab reads maps of its stages"),
        ("sskd", data(), "sskd trains heads on it"),
        ("kd", data((-1, -1)), "for want of labels that decide"),
        ("simreg", data(), "for want of labels that decide"),
        ("kd", data(labelled=0), "have no labels of their own"),
    ],
)
def test_what_needs_the_teacher_itself_builds_it_and_says_why(method, images, why):
    recipe = load_recipe("quickstart", ("teacher.cache.mode=read", f"method.name={method}"))
    found = why_built(recipe, images)
    assert (found is None) == (why is None)
    assert why is None or why in found
