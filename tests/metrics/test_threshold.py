"""The curves of two classes are scikit-learn's; the threshold separates what can be separated."""

from __future__ import annotations

import numpy as np
import pytest

from kdcompress.metrics.two_classes import MOST_POINTS, best_threshold, curves, operation

SCORES = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9])
TRUTH = np.array([False, False, True, False, True, True])


def test_areas_are_written_out():
    found = curves(SCORES, TRUTH)
    assert found.roc_auc == pytest.approx(8 / 9)  # 8 of 9 pairs in order
    assert (found.roc[0], found.roc[-1]) == ((0, 0), (1, 1))
    assert found.precision_recall[0][0] == 0


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    generator = np.random.default_rng(0)
    scores, truth = generator.random(5000), generator.random(5000) < 0.5
    found = curves(scores, truth)
    assert len(found.roc) <= MOST_POINTS
    assert (found.roc[0], found.roc[-1]) == ((0, 0), (1, 1))


def test_the_threshold_lies_between_what_it_separates():
    scores = np.array([0.01, 0.02, 0.04, 0.10])
    truth = np.array([False, False, False, True])
    threshold = best_threshold(scores, truth)
    assert threshold == pytest.approx(0.07)
    at = operation(scores, truth, threshold)
    assert (at.recall, at.precision, at.false_positive_rate, at.balanced_top1) == (1, 1, 0, 1)
    assert operation(scores, truth, 0.5).recall == 0
    assert operation(scores, truth, 0.5).precision is None


def test_a_point_has_the_figures_of_its_counts():
    at = operation(SCORES, TRUTH, 0.5)
    assert at.recall == pytest.approx(2 / 3)
    assert at.precision == pytest.approx(2 / 3)
    assert at.false_positive_rate == pytest.approx(1 / 3)
    assert at.balanced_top1 == pytest.approx(2 / 3)


def test_scores_that_are_all_equal_have_a_threshold_too():
    assert 0 <= best_threshold(np.full(4, 0.4), np.array([True, False, True, False])) <= 1
