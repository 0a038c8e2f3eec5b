"""What a method trains beside the teacher first is kept, and found again by every later run."""

from __future__ import annotations

import dataclasses
import json

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from kdcompress import pipeline
from kdcompress.cli import main
from kdcompress.methods.base import find_method
from kdcompress.train.trainer import Trainer

TINY = (
    "--set", "train.max_steps=2", "--set", "teacher.epochs=1", "--set", "teacher.min_top1=0",
    "--set", "bench.rounds=1", "--threads", "1",
)  # fmt: skip


class Prepared(Exception):
    """Ends a run where the student's training would begin."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    def stop(run, method):
        raise Prepared

    monkeypatch.setattr(pipeline, "run_training", stop)
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "cache"))


def distill(out, method, *more):
    arguments = ["distill", "--recipe", "quickstart", "--out", str(out), *TINY, *more]
    return CliRunner().invoke(main, [*arguments, "--set", f"method={method}"])


def prepared(out, method, *more):
    """The phases that were trained, and what is kept for the student's training."""
    done = distill(out, method, *more)
    assert isinstance(done.exception, Prepared), done.output
    log = out / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    kept = safetensors.torch.load_file(out / "checkpoints" / "teacher_extras.safetensors")
    return [json.loads(line)["phase"] for line in lines], kept


@pytest.mark.parametrize("name", ["sskd", "hsakd"])
def test_it_is_trained_once_and_only_what_it_depends_on_trains_it_again(name, tmp_path):
    phases, heads = prepared(tmp_path / "first", f"{{name: {name}, head_epochs: 1}}")
    assert phases == ["teacher", "preparation"]
    # The student's weights and seed have no part in it.
    student = f"{{name: {name}, head_epochs: 1, kd_weight: 0.5}}"
    phases, same = prepared(tmp_path / "second", student, "--set", "seed=3")
    assert phases == []
    assert heads.keys() == same.keys()
    assert all(torch.equal(heads[key], same[key]) for key in heads)
    phases, other = prepared(tmp_path / "third", f"{{name: {name}, head_epochs: 1, head_lr: 0.01}}")
    assert phases == ["preparation"]
    assert not all(torch.equal(heads[key], other[key]) for key in heads)


def test_a_run_stopped_within_it_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    method = "{name: sskd, head_epochs: 3}"
    longer = ("--set", "train.max_steps=60")  # in its third epoch of 22 steps
    _, heads = prepared(tmp_path / "unbroken", method, *longer)
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "another"))
    close = Trainer._close_epoch

    def stop(self, *given):
        close(self, *given)
        if self.job.label == "preparation":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_close_epoch", stop)
        assert distill(tmp_path / "run", method, *longer).exit_code == 130
    assert not (tmp_path / "run" / "checkpoints" / "teacher_extras.safetensors").exists()
    phases, resumed = prepared(tmp_path / "run", method, *longer, "--resume")
    assert phases[-3:] == ["preparation"] * 3
    assert all(torch.equal(heads[key], resumed[key]) for key in heads)


def two_preparations(monkeypatch, **first):
    """Gives hsakd a second preparation; the first one's fields can be changed."""
    cls = find_method("hsakd")
    own, take = cls.preparations, cls.take_prepared

    def preparations(cls, config):
        heads = dataclasses.replace(own(config)[0], epochs=1)
        return dataclasses.replace(heads, **first), dataclasses.replace(heads, name="again")

    def take_prepared(self, name, state):
        self.taken = [*getattr(self, "taken", []), name]
        take(self, name, state)

    monkeypatch.setattr(cls, "preparations", classmethod(preparations))
    monkeypatch.setattr(cls, "take_prepared", take_prepared)


def stored_key(out, stem):
    return json.loads((out / "checkpoints" / f"{stem}.json").read_text())["key"]


@pytest.mark.exhaustive
def test_of_two_preparations_the_second_depends_on_the_first(tmp_path, monkeypatch):
    method = "{name: hsakd, head_epochs: 1}"
    methods = []

    def stop(run, training):
        methods.append(training.method)
        raise Prepared

    monkeypatch.setattr(pipeline, "run_training", stop)
    with monkeypatch.context() as patch:
        two_preparations(patch)
        phases, _ = prepared(tmp_path / "first", method)
        assert phases == ["teacher", "preparation", "again"]
        phases, _ = prepared(tmp_path / "second", method)
        assert phases == []
    assert [m.taken for m in methods] == [["preparation", "again"]] * 2
    with monkeypatch.context() as patch:
        two_preparations(patch, lr=0.02)
        phases, _ = prepared(tmp_path / "third", method)
    assert phases == ["preparation", "again"]
    keys = [stored_key(tmp_path / run, "teacher_again") for run in ("first", "second", "third")]
    assert keys[0] == keys[1] != keys[2]
