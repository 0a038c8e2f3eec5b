"""A gain is claimed only where the images show one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdcompress.report.verdict import gain


def _paired(won, lost, both, neither=0):
    student = [True] * won + [False] * lost + [True] * both + [False] * neither
    baseline = [False] * won + [True] * lost + [True] * both + [False] * neither
    return student, baseline


def test_the_points_are_the_difference_in_top1():
    assert gain(*_paired(won=30, lost=10, both=100, neither=60))["points"] == 10


def test_equal_classifiers_show_no_difference_and_a_width():
    result = gain(*_paired(won=0, lost=0, both=50))
    assert (result["points"], result["verdict"]) == (0, "no difference shown")
    assert result["ci95"][0] < 0 < result["ci95"][1]


def test_the_interval_is_bonett_and_prices():
    # won 30, lost 10, n 200: p12 = 31/202, p21 = 11/202
    low, high = gain(*_paired(30, 10, 100, 60))["ci95"]
    difference = 20 / 202
    half = 1.959964 * ((42 / 202 - difference**2) / 202) ** 0.5
    assert (low, high) == pytest.approx((100 * (difference - half), 100 * (difference + half)), rel=1e-6)


def test_many_more_wins_than_losses_are_better_and_mirrored_worse():
    student, baseline = _paired(won=60, lost=20, both=300)
    better, worse = gain(student, baseline), gain(baseline, student)
    assert (better["verdict"], worse["verdict"]) == ("better", "worse")
    assert better["ci95"] == pytest.approx([-end for end in reversed(worse["ci95"])])


def test_a_few_wins_are_no_difference_shown():
    assert gain(*_paired(won=3, lost=1, both=96))["verdict"] == "no difference shown"


def test_the_interval_covers_the_true_difference_95_times_in_100():
    rng = np.random.default_rng(0)
    won, lost, trials, n = 0.06, 0.03, 1000, 300
    covered = 0
    for _ in range(trials):
        kind = rng.choice(3, size=n, p=[won, lost, 1 - won - lost])
        low, high = gain(kind != 1, kind != 0)["ci95"]
        covered += low <= 100 * (won - lost) <= high
    assert covered / trials >= 0.935


def test_arrays_and_tensors_are_read_alike():
    student, baseline = _paired(5, 2, 20)
    assert gain(torch.tensor(student), torch.tensor(baseline)) == gain(np.array(student), baseline)


def test_different_images_are_refused():
    with pytest.raises(ValueError, match="equally long"):
        gain([True], [True, False])
    with pytest.raises(ValueError, match="equally long"):
        gain([], [])
