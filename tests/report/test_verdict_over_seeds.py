"""The verdict over several seeds: its interval, and how often it is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kdcompress.report.verdict import gain, gain_over_seeds, image_error

IMAGES, UNCERTAIN, SPREAD = 10_000, 940, 0.0302
"""Measured on Fashion-MNIST (benchmarks/methods.md, 8 methods, 3 seeds).

Runs of one method differ in whether they are right on 4.7 % of the images, as if 940 of 10,000 were right
by the toss of a coin. The differences of their top-1 have a standard deviation of 0.46 points; tosses would
alone give 0.22, and the rest is a coin that each seed loads otherwise.
"""


def compared(random, seeds, true_gain=0.0):
    """Returns the verdict on two arms of so many seeds; the student's arm is better by so many points."""
    points, errors = [], []
    for _ in range(seeds):
        student, baseline = 0.5 + random.normal(0, SPREAD, 2)
        student += true_gain * IMAGES / 100 / UNCERTAIN
        shares = [student * (1 - baseline), baseline * (1 - student)]
        won, lost, _ = random.multinomial(UNCERTAIN, [*shares, 1 - sum(shares)])
        points.append(100 * (won - lost) / IMAGES)
        errors.append(100 * math.sqrt(won + lost) / IMAGES)
    return gain_over_seeds(points, errors)["verdict"]


def test_the_interval_is_students_over_the_seeds():
    known = gain_over_seeds([2.5, 3.25, 4.0])
    assert (known["points"], known["sd"], known["n"]) == (3.25, 0.75, 3)
    # 4.3027 is the quantile for two degrees of freedom.
    assert known["ci95"] == pytest.approx(
        [3.25 - 4.3027 * 0.75 / 3**0.5, 3.25 + 4.3027 * 0.75 / 3**0.5], abs=1e-4
    )
    assert known["verdict"] == "better"


def test_seeds_that_agree_by_chance_keep_the_error_of_the_images():
    assert gain_over_seeds([1.0, 1.0, 1.0])["ci95"] == [1.0, 1.0]
    known = gain_over_seeds([1.0, 1.0, 1.0], [0.5, 0.5, 0.5])
    assert known["ci95"][0] == pytest.approx(1 - 4.3027 * 0.5 / 3**0.5, abs=1e-4)
    assert known["verdict"] == "no difference shown"


def test_the_error_of_the_images_is_that_of_their_interval():
    student = np.arange(2000) % 10 > 1
    baseline = np.arange(2000) % 10 > 2  # wrong on 200 more
    error = image_error(gain(student, baseline))
    # The variance of a mean of 2,000 differences, of which a tenth are 1.
    assert error == pytest.approx(100 * math.sqrt(0.1 * 0.9 / 2000), rel=0.02)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_arms_that_differ_by_seed_alone_are_seldom_called_different(seeds):
    random = np.random.default_rng(0)
    wrong = sum(compared(random, seeds) != "no difference shown" for _ in range(2000))
    assert wrong <= 0.06 * 2000


def test_a_gain_of_one_point_is_found_with_the_default_number_of_seeds():
    random = np.random.default_rng(0)
    found = sum(compared(random, 5, true_gain=1.0) == "better" for _ in range(2000))
    assert found >= 0.8 * 2000
