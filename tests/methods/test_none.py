from __future__ import annotations

import json

import pytest
import torch
from small_training import Small

from kdcompress.errors import UserError


def test_while_the_classifier_goes_first_nothing_else_changes_batch_norm_statistics_included(tmp_path):
    small = Small(tmp_path, config={"classifier_first": 0.99}, train={"epochs": 2, "max_steps": 3})
    before = {name: tensor.clone() for name, tensor in small.student.network.state_dict().items()}
    small.run()
    after = small.student.network.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}


def test_then_everything_moves_with_an_optimiser_and_a_schedule_of_its_own(tmp_path):
    small = Small(tmp_path, config={"classifier_first": 0.5}, train={"epochs": 2})
    rates, frozen = [], []
    set_rate = small.trainer.method.after_step

    def after_step(batch):
        rates.append(small.student.network.fc.weight.grad is not None)
        frozen.append(small.student.network.conv1.weight.grad is None)
        set_rate(batch)

    small.method.after_step = after_step
    small.run()
    assert all(rates)
    assert frozen == [True] * 5 + [False] * 5
    assert all(p.requires_grad for p in small.student.network.parameters())


def test_a_share_that_rounds_to_no_epoch_still_gets_one(tmp_path):
    small = Small(tmp_path, config={"classifier_first": 0.1}, train={"epochs": 2})
    small.run()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["student/classifier", "student/all"]


def test_fewer_epochs_than_phases_are_refused(tmp_path):
    small = Small(tmp_path, config={"classifier_first": 0.5}, train={"epochs": 1})
    with pytest.raises(UserError, match=r"train.epochs: 1, but the method has 2 phases \(classifier, all\)"):
        small.run()
