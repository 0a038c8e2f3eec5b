"""By what the best epoch is chosen, with labels and without."""

from __future__ import annotations

import json

import pytest
import torch
from small_training import Small, Watcher, assert_same

from kdcompress.errors import Interrupted
from kdcompress.tasks import CLASSIFICATION, EMBEDDING
from kdcompress.train import choice as choosing


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def asked(monkeypatch):
    """Lists the tasks for which the teacher's outputs on the held-out images were computed."""
    calls = []
    ask = choosing.predict_teacher
    monkeypatch.setattr(choosing, "predict_teacher", lambda *a: calls.append(a[2]) or ask(*a))
    return calls


def test_with_labels_a_classifier_is_chosen_by_its_top1_and_its_teacher_is_not_asked(tmp_path, asked):
    outcome = Small(tmp_path, "kd").run()
    assert outcome.best.keys() - {"single_class"} == {"top1", "loss", "candidate", "epoch"}
    assert asked == []


def test_without_labels_a_classifier_is_chosen_by_its_teachers_classes_asked_once(tmp_path, asked):
    small = Small(tmp_path, "kd", config={"ce_weight": 0.0}, labelled=False, train={"epochs": 3, "ema": 0.5})
    outcome = small.run()
    assert asked == [CLASSIFICATION]
    told = [line["held_out"] for line in lines(tmp_path)]
    assert all(t.keys() == {"agreement", "kl", "candidates"} for t in told)
    every = [
        (c["agreement"], -c["kl"], -i, name)
        for i, t in enumerate(told, 1)
        for name, c in t["candidates"].items()
    ]
    best = max(every)
    assert outcome.best["agreement"] == best[0]
    assert (-outcome.epoch, outcome.candidate) == best[2:]


def test_of_equal_accuracies_the_lower_loss_is_chosen(tmp_path):
    small = Small(tmp_path, train={"epochs": 3})
    figures = iter([{"top1": 0.5, "loss": 0.9}, {"top1": 0.5, "loss": 0.4}, {"top1": 0.5, "loss": 0.6}])
    small.trainer.choice._scores = lambda *_, **__: {"student": next(figures)}
    assert small.run().epoch == 2


def test_a_backbone_is_chosen_by_its_neighbours_and_its_teacher_asked_once(tmp_path, asked):
    outcome = Small(tmp_path, "simreg", train={"epochs": 3}).run()
    assert asked == [EMBEDDING]
    told = [line["held_out"] for line in lines(tmp_path)]
    assert all(t.keys() == {"knn_top1", "agreement"} for t in told)
    assert outcome.best["knn_top1"] == max(t["knn_top1"] for t in told)


def test_where_neither_labels_nor_a_teacher_tell_anything_the_last_epoch_ships(tmp_path, monkeypatch):
    small = Small(tmp_path)
    unlabelled = Small(tmp_path / "other", labelled=False)
    small.trainer.choice._held_out = unlabelled.trainer.choice._held_out
    outcome = small.run()
    assert [line["held_out"] for line in lines(tmp_path)] == [None, None]
    assert (outcome.best, outcome.last, outcome.epoch) == (None, None, 2)
    assert_same(outcome.state, small.student.network.state_dict())


def test_a_resume_asks_the_teacher_again_and_chooses_the_same(tmp_path):
    settings = {"config": {"ce_weight": 0.0}, "labelled": False, "train": {"epochs": 3}}
    whole = Small(tmp_path / "whole", "kd", **settings).run()
    with pytest.raises(Interrupted):
        Small(tmp_path / "cut", "kd", **settings, watcher=Watcher(7)).run()
    resumed = Small(tmp_path / "cut", "kd", **settings).run()
    assert resumed.best == whole.best
    assert all(torch.equal(tensor, whole.state[key]) for key, tensor in resumed.state.items())
