from __future__ import annotations

import math

import pytest
import torch

from kdcompress.metrics.clustering import (
    adjusted_rand_index,
    cluster_figures,
    contingency,
    matched_accuracy,
    normalized_mutual_information,
    purity,
)

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
HALVES = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
"""Three of class 0 in one cluster; its fourth with all of class 1 in the other."""


def test_the_same_partition_is_1_whatever_its_clusters_are_called():
    figures = cluster_figures(torch.tensor([7, 7, 7, 7, 2, 2, 2, 2]), LABELS)
    assert figures == pytest.approx({"nmi": 1, "ari": 1, "accuracy": 1, "purity": 1})


def test_figures_of_a_clustering_with_one_image_on_the_wrong_side():
    assert contingency(HALVES, LABELS).tolist() == [[3, 0], [1, 4]]
    # Entropies in nats of halves, of 3/8 and 5/8, and of the three cells.
    whole, parts = math.log(2), -(3 / 8 * math.log(3 / 8) + 5 / 8 * math.log(5 / 8))
    cells = -(3 / 8 * math.log(3 / 8) + 1 / 8 * math.log(1 / 8) + 4 / 8 * math.log(4 / 8))
    expected = (whole + parts - cells) / ((whole + parts) / 2)
    assert normalized_mutual_information(HALVES, LABELS) == pytest.approx(expected)
    # Pairs: 3 + 0 + 0 + 6 = 9 together in both; 12 of the classes, 13 of the clusters, 28 in all.
    by_chance = 12 * 13 / 28
    assert adjusted_rand_index(HALVES, LABELS) == pytest.approx((9 - by_chance) / (12.5 - by_chance))
    assert matched_accuracy(HALVES, LABELS) == purity(HALVES, LABELS) == 7 / 8


def test_a_surplus_cluster_counts_as_errors_in_the_accuracy_and_not_in_the_purity():
    split = torch.tensor([0, 0, 0, 2, 1, 1, 1, 1])
    assert matched_accuracy(split, LABELS) == 7 / 8
    assert purity(split, LABELS) == 1
    # Two clusters of one class, though each alone would be matched with it.
    assert matched_accuracy(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1])) == 3 / 4
    assert matched_accuracy(torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.int64)) == 1 / 2


def test_one_cluster_of_all_tells_nothing():
    figures = cluster_figures(torch.zeros(8, dtype=torch.int64), LABELS)
    assert figures == pytest.approx({"nmi": 0, "ari": 0, "accuracy": 0.5, "purity": 0.5})


def test_images_without_a_label_are_left_out():
    assigned, labels = torch.cat([HALVES, torch.tensor([5, 0])]), torch.cat([LABELS, torch.tensor([-1, -1])])
    assert cluster_figures(assigned, labels) == cluster_figures(HALVES, LABELS)
    nothing = {"nmi": None, "ari": None, "accuracy": None, "purity": None}
    assert cluster_figures(HALVES, torch.full((8,), -1)) == nothing


def test_as_many_clusters_as_images_are_no_error():
    figures = cluster_figures(torch.arange(8), LABELS)
    assert (figures["accuracy"], figures["purity"]) == (2 / 8, 1)
    assert figures["ari"] == pytest.approx(0)
