"""The early exits that ship belong to the epoch, the average and the statistics of the student that ships."""

from __future__ import annotations

import pytest
import torch
from small_training import Small, Watcher, assert_same, images

from kdcompress.data.loader import EvaluationLoader
from kdcompress.errors import Interrupted
from kdcompress.networks.exits import WithExits
from kdcompress.train.bn_statistics import StatisticsImages, reestimate


def copies(modules):
    return {
        name: {key: value.clone() for key, value in module.state_dict().items()}
        for name, module in modules.items()
    }


def scored(small, monkeypatch, scores):
    """Gives the candidates these scores, an epoch each, and lists the exits' states after every epoch."""
    given, states = iter(scores), []

    def score(*_, **__):
        states.append(copies(small.method.early_exits()))
        figures = {name: {"top1": top1, "loss": 1.0} for name, top1 in next(given).items()}
        return figures, dict.fromkeys(figures)

    monkeypatch.setattr(small.trainer.choice, "_scores", score)
    return states


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert_same(one[name], other[name])


def test_they_are_those_of_the_best_epoch(tmp_path, monkeypatch):
    small = Small(tmp_path, "byot", exits=True)
    states = scored(small, monkeypatch, [{"student": 0.9}, {"student": 0.5}])
    outcome = small.run()
    assert outcome.epoch == 1
    assert list(outcome.exits) == ["stage1", "stage2"]
    same(outcome.exits, states[0])
    with pytest.raises(AssertionError):
        same(outcome.exits, states[1])


def test_with_the_average_their_average_ships(tmp_path, monkeypatch):
    small = Small(tmp_path, "byot", exits=True, train={"ema": 0.5})
    states = scored(small, monkeypatch, [{"student": 0.1, "ema": 0.2}, {"student": 0.1, "ema": 0.9}])
    outcome = small.run()
    assert outcome.candidate == "ema"
    same(outcome.exits, copies(dict(small.trainer.average_exits.network.named_children())))
    with pytest.raises(AssertionError):
        same(outcome.exits, states[1])


def test_their_statistics_are_those_of_the_student_that_ships(tmp_path, monkeypatch):
    batches = EvaluationLoader(images(16, 8), device=torch.device("cpu"))
    given = StatisticsImages(batches, batches)
    small = Small(tmp_path, "byot", exits=True, statistics=lambda _: given)
    choice = small.trainer.choice
    with_best = choice._with_best_statistics

    def better(like, state):
        state, facts = with_best(like, state)
        return state, {**facts, "shipped": shipped}

    monkeypatch.setattr(choice, "_with_best_statistics", better)
    shipped = "running"
    running = small.run().exits
    shipped = "re-estimated"
    new = choice.outcome(2, 0.0).exits
    moved = [key for key in running["stage1"] if not torch.equal(running["stage1"][key], new["stage1"][key])]
    assert moved
    assert all(key.endswith(("running_mean", "running_var")) for key in moved)
    same(copies(small.method.early_exits()), running)


def test_the_students_own_statistics_stay_where_the_exits_are_measured(tmp_path):
    small = Small(tmp_path, "byot")
    student, exits = small.student, small.method.early_exits()
    whole = WithExits(student.network, [(student.taps.stages[name], exits[name]) for name in exits])
    before, heads = copies({"student": student.network}), copies(exits)
    loader = EvaluationLoader(images(16, 8), device=torch.device("cpu"))
    assert reestimate(whole, student, loader, within=whole.exits) == 16
    same(copies({"student": student.network}), before)
    with pytest.raises(AssertionError):
        same(copies(exits), heads)


def test_none_are_recorded_without_the_option(tmp_path):
    small = Small(tmp_path, "byot", train={"ema": 0.5})
    assert small.run().exits == {}
    assert "exits" not in small.trainer.choice.best
    assert small.trainer.average_exits is None


def test_a_resume_goes_on_with_the_best_epochs_exits_and_the_averages(tmp_path):
    settings = {"exits": True, "train": {"ema": 0.5, "epochs": 2}}
    unbroken = Small(tmp_path / "a", "byot", **settings)
    whole = unbroken.run()
    with pytest.raises(Interrupted):
        Small(tmp_path / "b", "byot", **settings, watcher=Watcher(7)).run()
    second = Small(tmp_path / "b", "byot", **settings)
    assert second.trainer.average_exits is not None
    resumed = second.run()
    same(resumed.exits, whole.exits)
    assert_same(second.tensors(), unbroken.tensors())
