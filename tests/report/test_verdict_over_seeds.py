"""The verdict over several seeds: its interval, and how often it is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from kdcompress.report.verdict import gain, gain_over_seeds, image_error
from kdcompress.tools.grid_plan import GridRequest

MEASURED = json.loads((Path(__file__).parents[2] / "benchmarks" / "seed_spread.json").read_text())["sets"]
SEEDS = GridRequest("any").seeds


def made_up(measured):
    """Returns how many images a toss decides, and how far each seed loads the coin, as they would give it.

    Two runs of one method are right on different images as if so many were right by the toss of a coin. Of
    the spread of their difference in top-1 tosses explain a part; the rest is a coin that each seed loads.
    """
    images = measured["images"]
    uncertain = round(2 * measured["differing"] * images)
    rest = (measured["sd_points"] * images / 100) ** 2 - uncertain / 2
    return images, uncertain, math.sqrt(max(0.0, rest) / 2) / uncertain


def differences(random, measured, seeds, true_gain):
    """Returns the difference of each pair in points, and its error; one arm is better by so many points."""
    images, uncertain, spread = made_up(measured)
    points, errors = [], []
    for _ in range(seeds):
        student, baseline = 0.5 + random.normal(0, spread, 2)
        student += true_gain * images / 100 / uncertain
        shares = [student * (1 - baseline), baseline * (1 - student)]
        won, lost, _ = random.multinomial(uncertain, [*shares, 1 - sum(shares)])
        points.append(100 * (won - lost) / images)
        errors.append(100 * math.sqrt(won + lost) / images)
    return points, errors


def compared(random, measured, seeds, true_gain=0.0):
    return gain_over_seeds(*differences(random, measured, seeds, true_gain))["verdict"]


@pytest.mark.parametrize("measured", MEASURED, ids=lambda measured: measured["set"])
def test_what_is_simulated_has_the_spread_that_was_measured(measured):
    random = np.random.default_rng(0)
    points = [differences(random, measured, 1, 0.0) for _ in range(4000)]
    assert np.std([p[0] for p, _ in points]) == pytest.approx(measured["sd_points"], rel=0.05)
    # The square of an error is the share of images that one of the two gets right, over the images.
    share = np.mean([(e[0] / 100) ** 2 * measured["images"] for _, e in points])
    assert share == pytest.approx(measured["differing"], rel=0.05)


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


@pytest.mark.parametrize("measured", MEASURED, ids=lambda measured: measured["set"])
@pytest.mark.parametrize("seeds", [2, 3, SEEDS])
def test_arms_that_differ_by_seed_alone_are_seldom_called_different(measured, seeds):
    random = np.random.default_rng(0)
    wrong = sum(compared(random, measured, seeds) != "no difference shown" for _ in range(2000))
    assert wrong <= 0.06 * 2000


@pytest.mark.parametrize(("name", "seeds"), [("resnet8", SEEDS), ("resnet8-short", 10)])
def test_a_gain_of_one_point_is_found_with_enough_seeds(name, seeds):
    """The default number is enough where a training fits its labels; one that is cut off spreads more."""
    (measured,) = (known for known in MEASURED if known["set"] == name)
    random = np.random.default_rng(0)
    found = sum(compared(random, measured, seeds, true_gain=1.0) == "better" for _ in range(2000))
    assert found >= 0.8 * 2000
