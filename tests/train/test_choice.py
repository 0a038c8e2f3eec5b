"""By what the best epoch is chosen, with labels and without."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from small_training import Small, Watcher, assert_same

from kdcompress.data.loader import EvaluationLoader
from kdcompress.errors import Interrupted
from kdcompress.tasks import CLASSIFICATION, EMBEDDING
from kdcompress.tasks.base import Decisions
from kdcompress.tasks.figures import selection_metric
from kdcompress.train import scores as scoring


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture
def asked(monkeypatch):
    """Lists the tasks for which the teacher's outputs on the held-out images were computed."""
    calls = []
    ask = scoring.predict_teacher
    monkeypatch.setattr(scoring, "predict_teacher", lambda *a: calls.append(a[2]) or ask(*a))
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
    shipped = told[outcome.epoch - 1]["candidates"][outcome.candidate]
    assert {key: outcome.best[key] for key in ("agreement", "kl")} == shipped


def test_all_candidates_are_scored_in_one_pass_over_the_images(tmp_path, monkeypatch):
    small = Small(tmp_path, "dml", train={"ema": 0.5, "epochs": 3})
    passes, batches = [], EvaluationLoader.__iter__
    monkeypatch.setattr(EvaluationLoader, "__iter__", lambda loader: passes.append(loader) or batches(loader))
    small.run()
    assert lines(tmp_path)[-1]["held_out"]["candidates"].keys() == {"student", "peer1", "ema"}
    assert passes == [small.trainer.choice._held_out] * 3


def test_epochs_between_two_evaluations_have_no_figures_and_the_last_one_always_has(tmp_path):
    every = Small(tmp_path / "every", train={"epochs": 5}).run()
    outcome = Small(tmp_path / "some", train={"epochs": 5, "evaluate_every": 2}).run()
    figures = [line["held_out"] for line in lines(tmp_path / "some")]
    assert [figure is None for figure in figures] == [True, False, True, False, False]
    assert figures[-1] == outcome.last == every.last
    assert outcome.epoch in (2, 4, 5)
    assert [line["held_out"] for line in lines(tmp_path / "every")][1::2] == figures[1::2]


@pytest.mark.parametrize("labels", [[0, 1, 2] * 10, [0] * 20 + [2] * 6 + [-1] * 4])
def test_classes_and_losses_give_the_figures_of_all_logits(labels):
    outputs, labels = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)), torch.tensor(labels)
    parts = [CLASSIFICATION.decide(*part) for part in zip(outputs.split(7), labels.split(7), strict=True)]
    decisions = Decisions(torch.cat([part.rows for part in parts]), 3)
    assert CLASSIFICATION.score(decisions, labels) == CLASSIFICATION.score(outputs, labels)
    assert torch.equal(CLASSIFICATION.parts(decisions, labels), CLASSIFICATION.parts(outputs, labels))
    assert CLASSIFICATION.score(outputs, labels)["loss"] == pytest.approx(
        float(F.cross_entropy(outputs.double(), labels, ignore_index=-1)), abs=1e-12
    )


def scripted(tmp_path, *epochs, **train):
    """Trains with held-out results that are written down: for each epoch {candidate: ("1101", loss)}, where 1
    is an image that it gets right."""
    small = Small(tmp_path, train={"epochs": len(epochs), **train})
    told = iter(epochs)

    def scores(*_, **__):
        found, parts = {}, {}
        for name, (right, loss) in next(told).items():
            parts[name] = torch.tensor([float(letter) for letter in right], dtype=torch.float64) / len(right)
            found[name] = {"top1": float(parts[name].sum()), "loss": loss}
        return found, parts

    small.trainer.choice._scores = scores
    return small.run()


def test_a_later_epoch_is_chosen_unless_the_best_leads_clearly(tmp_path):
    chance = scripted(  # 7 images against 2 that one of them alone gets right: 5 < 2 · 3
        tmp_path / "chance",
        {"student": ("1111111001", 0.4)}, {"student": ("0000000111", 0.5)},
    )  # fmt: skip
    assert (chance.epoch, chance.best["top1"]) == (2, pytest.approx(0.3))
    clear = scripted(  # 5 against none: 5 > 2 · √5
        tmp_path / "clear",
        {"student": ("1111100000", 0.4)}, {"student": ("0000000000", 0.3)},
    )  # fmt: skip
    assert clear.epoch == 1


def test_small_losses_do_not_add_up(tmp_path):
    epochs = [{"student": (right, 0.4)} for right in ("11111111", "11110000", "11100000")]
    # The third is nearly as good as the second (1 image fewer), and clearly worse than the first (5 of 5).
    assert scripted(tmp_path, *epochs).epoch == 2


def test_of_an_epochs_candidates_that_none_leads_the_lowest_loss_is_chosen(tmp_path):
    student = ("1111110000", 0.5)
    outcome = scripted(tmp_path / "a", {"student": student, "ema": ("0000110000", 0.4)}, ema=0.5)
    assert outcome.candidate == "ema"  # 4 images of 4: not clear
    outcome = scripted(tmp_path / "b", {"student": student, "ema": ("0000010000", 0.1)}, ema=0.5)
    assert outcome.candidate == "student"  # 5 of 5


def test_a_checkpoint_without_the_best_images_compares_figures(tmp_path):
    small = Small(tmp_path)
    choice = small.trainer.choice
    state = {**choice.state_dict(), "best": {"top1": 0.5, "loss": 0.5, "epoch": 1, "candidate": "student"}}
    del state["peaks"]
    choice.load_state_dict(state)
    right = torch.tensor([1.0, 1, 0, 0, 0], dtype=torch.float64) / 5
    choice._scores = lambda *_, **__: ({"student": {"top1": 0.4, "loss": 0.1}}, {"student": right})
    choice.score(2)
    assert choice.best["epoch"] == 1
    choice._scores = lambda *_, **__: ({"student": {"top1": 0.6, "loss": 0.1}}, {"student": right})
    choice.score(3)
    assert choice.best["epoch"] == 3


@pytest.mark.parametrize(
    ("labels", "figure"),
    [
        ([0, 1, 2] * 10, "top1"),
        ([0] * 20 + [1] * 9 + [2], "balanced_top1"),
        ([0] * 20 + [2] * 6 + [-1] * 4, "balanced_top1"),
        ([-1] * 30, "agreement"),
    ],
)
def test_the_parts_of_the_images_add_up_to_the_deciding_figure(labels, figure):
    generator = torch.Generator().manual_seed(0)
    outputs, teacher = torch.randn(2, 30, 3, generator=generator)
    labels = torch.tensor(labels)
    scores = CLASSIFICATION.score(outputs, labels, teacher)
    assert selection_metric(scores) == figure
    parts = CLASSIFICATION.parts(outputs, labels, teacher)
    assert float(parts.sum()) == pytest.approx(scores[figure], abs=1e-12)


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


@pytest.mark.parametrize("ship", ["best", "peer1", "ensemble"])
def test_every_candidate_may_ship_whatever_was_asked_for(ship, tmp_path):
    outcome = Small(tmp_path, "dml", held_out=8, train={"ship": ship}).run()
    names = {"student", "peer1", *(["ensemble"] if ship == "ensemble" else [])}
    assert {name: figures["may_ship"] for name, figures in outcome.candidates.items()} == dict.fromkeys(
        names, True
    )
