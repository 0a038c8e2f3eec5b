"""Unequal classes are seen, weighted and judged by balanced top-1; a single predicted class is told."""

from __future__ import annotations

import pytest
import torch

from kdcompress.data.class_weights import scaled_class_weights, unequal_classes
from kdcompress.report.verdict import gain
from kdcompress.run.teacher_gate import chance_level, least_top1, weak_top1_limit
from kdcompress.tasks import CLASSIFICATION
from kdcompress.tasks.classification import accuracy, single_class
from kdcompress.tasks.figures import comparable, selection_metric


def labels(*counts):
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


@pytest.mark.parametrize(
    ("counts", "unequal"),
    [((68, 32), True), ((732, 1300), False), ((50, 50, 0), False), ((8, 1), True), ((5,), False)],
)
def test_unequal_means_twice_as_many(counts, unequal):
    assert unequal_classes(counts) is unequal


def test_balanced_top1_decides_where_classes_are_unequal_and_only_there():
    predictions = labels(80, 20)
    figures = accuracy(predictions, labels(68, 32), 2)
    assert selection_metric(figures) == "balanced_top1"
    assert [figure.key for figure in comparable(figures)] == ["balanced_top1", "top1"]
    equal = accuracy(labels(50, 50), labels(50, 50), 2)
    assert selection_metric(equal) == "top1"
    assert "decides" not in equal


def test_the_held_out_score_is_that_of_the_figures():
    logits = torch.nn.functional.one_hot(labels(80, 20), 2).float()
    score = CLASSIFICATION.score(logits, labels(68, 32))
    full = accuracy(logits, labels(68, 32), 2)
    assert score["balanced_top1"] == full["balanced_top1"] == pytest.approx((1 + 20 / 32) / 2)
    assert score["top1"] == 0.88
    assert selection_metric(score) == "balanced_top1"


def test_a_single_predicted_class_is_told():
    true = labels(68, 32)
    assert accuracy(torch.zeros(100, dtype=torch.int64), true, 2)["single_class"] == 0
    assert "single_class" not in accuracy(true, true, 2)
    # Nearly all images of one class are of that class: nothing is wrong.
    assert single_class(labels(95, 5), [1.0, 1.0]) is None
    assert single_class(labels(97, 3), [0.99, 0.07]) == 0
    assert single_class(torch.zeros(9, dtype=torch.int64), [1.0, None]) is None


def test_weights_are_balanced_only_where_classes_are_unequal():
    assert scaled_class_weights("auto", labels(50, 50), 2) is None
    auto, balanced = (scaled_class_weights(w, labels(68, 32), 2) for w in ("auto", "balanced"))
    assert torch.equal(auto, balanced)


def test_a_teacher_at_chance_is_refused_and_a_useful_one_is_not():
    # The folder of two classes, 68 to 32, with 262 held-out images.
    counts = (178, 84)
    assert chance_level("top1", counts) == pytest.approx(0.679, abs=1e-3)
    assert chance_level("balanced_top1", counts) == 0.5
    assert least_top1("balanced_top1", counts) < 0.56
    assert least_top1("top1", (178, 84)) < 0.749  # refused before: 0.75 was expected
    assert least_top1("top1", (18,) * 10) == pytest.approx(0.137, abs=2e-3)
    assert least_top1("top1", (50,) * 1000) < 0.002
    # Under chance, one in twenty passes at most: the interval covers so few images.
    generator = torch.Generator().manual_seed(0)
    true = labels(20, 20)
    guesses = torch.randint(0, 2, (2_000, 40), generator=generator)
    shares = (guesses == true).double().mean(1)
    assert (shares >= least_top1("top1", (20, 20))).double().mean() < 0.09


def test_a_weak_teacher_is_one_below_three_times_chance_or_halfway():
    assert weak_top1_limit(0.001) == pytest.approx(0.003)
    assert weak_top1_limit(0.5) == 0.75


def test_the_balanced_gain_is_the_mean_of_the_classes_gains():
    true = labels(80, 20)
    student = torch.cat([torch.ones(72), torch.zeros(8), torch.ones(15), torch.zeros(5)]).bool()
    baseline = torch.cat([torch.ones(76), torch.zeros(4), torch.ones(5), torch.zeros(15)]).bool()
    balanced = gain(student, baseline, true)
    assert balanced["points"] == pytest.approx(100 * (-4 / 80 + 10 / 20) / 2)
    assert balanced["figure"] == "balanced_top1"
    assert gain(student, baseline)["points"] == pytest.approx(6)
    assert gain(student, baseline, torch.zeros(100))["ci95"] == gain(student, baseline)["ci95"]


def test_the_balanced_interval_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    true = labels(150, 50)
    rates = torch.tensor([0.06, 0.2])[true]  # of images that only the student gets right, by class
    covered = 0
    for _ in range(300):
        draw = torch.rand(200, generator=generator)
        student, baseline = draw < rates, (draw >= rates) & (draw < 2 * rates)
        low, high = gain(student, baseline, true)["ci95"]
        covered += low <= 0 <= high
    assert 0.92 <= covered / 300 <= 0.985
