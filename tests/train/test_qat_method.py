"""Tuning for int8 through the loop that every training goes through."""

from __future__ import annotations

import json
import math

import pytest
import torch
from small_training import ALONE, Small, Watcher, assert_same

from kdcompress import discovery
from kdcompress.errors import Interrupted
from kdcompress.methods.base import find_method
from kdcompress.networks.rounding import Rounding
from kdcompress.recipe import OptimSection, TrainSection
from kdcompress.train import qat_method as tuning
from kdcompress.train.job import Job
from kdcompress.train.journal import Journal
from kdcompress.train.qat_method import QuantizationAwareTraining
from kdcompress.train.trainer import Trainer


def trained(folder, method="kd", **options):
    """A small training that is over."""
    small = Small(folder, method, train={"epochs": 1, **options.pop("train", {})}, **options)
    small.run()
    return small


class Tuning:
    """The tuning of what a small training left, for two epochs of five steps."""

    def __init__(self, small, watcher=None, epochs=2):
        self.student = small.student
        self.student.train_mode(False)
        images = [self.student.normalise(batch.images) for batch in small.loader.epoch(0)]
        self.rounding = Rounding(self.student.network, images)
        self.student.forward_context = self.rounding.rounded
        self.method = QuantizationAwareTraining(small.method, self.rounding, ALONE, after=1)
        train = TrainSection(epochs=epochs, precision="fp32")
        job = Job("qat", small.folder, train, OptimSection(lr=0.01), epochs, False, "--resume")
        held_out = small.trainer.choice._held_out
        self.trainer = Trainer(
            self.method, small.loader, held_out, job, ALONE, Journal(small.folder), watcher or Watcher()
        )

    def tensors(self):
        modules = self.trainer._modules()
        return {f"{name}.{key}": t for name, m in modules.items() for key, t in m.state_dict().items()}


def test_it_moves_the_weights_and_keeps_the_batch_norm_statistics_and_the_teacher(tmp_path):
    small = trained(tmp_path)
    before = {key: tensor.clone() for key, tensor in small.student.network.state_dict().items()}
    Tuning(small).trainer.run()
    after = small.student.network.state_dict()
    still = {key for key in before if torch.equal(before[key], after[key])}
    assert still == {key for key in before if "running" in key or "tracked" in key}
    small.frozen.assert_unchanged()


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_stopped_at_any_step_and_resumed_it_comes_to_the_same_bits(tmp_path, monkeypatch, stop):
    monkeypatch.setattr(tuning, "STEPS_BETWEEN_MEASURES", 2)
    whole = Tuning(trained(tmp_path / "whole"))
    whole.trainer.run()
    with pytest.raises(Interrupted):
        Tuning(trained(tmp_path / "broken"), Watcher(stop)).trainer.run()
    again = trained(tmp_path / "broken")  # from its checkpoint, as a resumed run does it
    resumed = Tuning(again)
    outcome = resumed.trainer.run()
    assert_same(whole.tensors(), resumed.tensors())
    assert {"method.rounding.scales", "method.age"} <= set(resumed.tensors())
    lines = [json.loads(line) for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["epoch"]) for line in lines] == [("student", 1), ("qat", 1), ("qat", 2)]
    assert outcome.best["top1"] >= lines[1]["held_out"]["top1"]


def test_the_levels_are_taken_anew_after_so_many_steps_and_before_each_scoring(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "STEPS_BETWEEN_MEASURES", 2)
    under_way = Tuning(trained(tmp_path))
    measured = []
    measure = under_way.rounding.measure
    monkeypatch.setattr(
        under_way.rounding, "measure", lambda n: (measured.append(under_way.trainer.at.step), measure(n))
    )
    under_way.trainer.run()
    assert measured == [2, 4, 5, 7, 9, 10]


def test_what_is_scored_is_the_rounded_student(tmp_path):
    small = trained(tmp_path)
    under_way = Tuning(small)
    under_way.rounding.scales.fill_(1e6)  # every activation becomes 0
    under_way.rounding.zeros.zero_()
    logits = small.student(torch.rand(6, 3, 8, 8)).logits
    assert torch.equal(logits, logits[:1].expand_as(logits))


def test_a_method_goes_on_in_its_last_phase_with_its_epochs_counted_on(tmp_path):
    small = trained(tmp_path, "ab", train={"epochs": 2})
    names = [phase.name for phase in small.method.phases()]
    assert len(names) == 2
    under_way = Tuning(small)
    assert [(phase.name, phase.share) for phase in under_way.method.phases()] == [(names[-1], 1.0)]
    under_way.trainer.run()
    assert small.method.phase == names[-1]
    assert (small.method.epoch, small.method.epochs) == (2, 3)


def test_needs_are_those_of_the_method_that_goes_on(tmp_path):
    small = trained(tmp_path, "fitnet", train={"epochs": 2})
    under_way = Tuning(small)
    assert QuantizationAwareTraining.needs(under_way.method.config) == small.method.needs(small.method.config)


def with_teacher():
    for name in discovery.names("method"):
        cls = find_method(name)
        if cls.needs(cls.Config()).teacher:
            yield name


@pytest.mark.parametrize("name", list(with_teacher()))
def test_every_method_with_a_teacher_can_go_on(tmp_path, name):
    small = Small(tmp_path, name, train={"epochs": 2})
    before = small.student.network.state_dict()["conv1.weight"].clone()
    under_way = Tuning(small, epochs=1)
    under_way.trainer.run()
    assert not torch.equal(small.student.network.state_dict()["conv1.weight"], before)
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["phase"].startswith("qat")
    assert all(math.isfinite(value) for value in line["losses"].values())
