from __future__ import annotations

import math

import pytest
import torch

from kdcompress.metrics import neighbours
from kdcompress.metrics.neighbours import knn_top1, overlap


def at(*degrees):
    """Unit vectors of the plane, of differing lengths, which cosines do not see."""
    angles = torch.tensor(degrees, dtype=torch.float32).deg2rad()
    lengths = torch.arange(1, len(degrees) + 1)
    return torch.stack([angles.cos(), angles.sin()], 1) * lengths[:, None]


def test_every_image_is_given_the_class_that_its_neighbours_weigh_most_for():
    features = at(0, 10, 15, 60)
    labels = torch.tensor([0, 0, 1, 1])
    vote = {d: math.exp(math.cos(math.radians(d)) / 0.07) for d in (5, 10, 15, 45, 50, 60)}
    assert (
        vote[10] > vote[15] + vote[60]
    )  # so image 0 is given its class, though two of three are of the other
    assert vote[10] < vote[5] + vote[50]  # so image 1 is given the wrong one
    assert vote[45] > vote[50] + vote[60]  # so image 3 is given its class; image 2 has image 1 beside it
    assert knn_top1(features, labels) == 0.5
    assert knn_top1(at(0, 1, 60, 61), labels) == 1.0


def test_images_without_a_label_are_neither_asked_nor_asked_about():
    features = at(0, 1, 60, 61, 0, 60)
    labels = torch.tensor([0, 0, 1, 1, -1, -1])
    assert knn_top1(features, labels) == 1.0
    assert knn_top1(features, torch.tensor([0, 0, 1, 1, 1, 0])) < 1.0
    assert knn_top1(features, torch.tensor([-1, -1, -1, -1, -1, 0])) is None


def test_the_votes_equal_those_of_every_image_by_itself():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 8, generator=generator)
    labels = torch.randint(0, 4, (60,), generator=generator)
    right = 0
    for i in range(60):
        cosines = [
            (torch.nn.functional.cosine_similarity(features[i], features[j], dim=0).item(), j)
            for j in range(60)
            if j != i
        ]
        votes = [0.0] * 4
        for cosine, j in sorted(cosines, reverse=True)[:20]:
            votes[labels[j]] += math.exp(cosine / 0.07)
        right += votes.index(max(votes)) == labels[i]
    assert knn_top1(features, labels) == pytest.approx(right / 60)


def test_two_embeddings_agree_as_far_as_they_share_nearest_neighbours():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 8, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    assert overlap(features, 3 * features @ rotation) == 1.0
    # Of unrelated ones as many as chance: 10 of 49.
    by_chance = [overlap(features, torch.randn(50, 20, generator=generator)) for _ in range(20)]
    assert sum(by_chance) / 20 == pytest.approx(10 / 49, abs=0.03)
    # 12 images in three groups of four: the ten nearest others are all but one.
    one = [set(range(12)) - {i, (i + 6) % 12} for i in range(12)]
    degrees = [30 * i for i in range(12)]
    assert overlap(at(*degrees), at(*degrees)) == 1.0
    moved = at(*[degrees[(5 * i) % 12] for i in range(12)])
    other = [{j for j in range(12) if j not in (i, (i + 6) % 12)} for i in range(12)]
    expected = sum(len(a & b) for a, b in zip(one, other, strict=True)) / 120
    assert overlap(at(*degrees), moved) == pytest.approx(expected) == 1.0
    assert overlap(features[:1], features[:1]) is None


def test_few_neighbours_that_differ_are_counted_by_hand(monkeypatch):
    monkeypatch.setattr(neighbours, "ALIKE", 1)
    # Nearest of 0, 10, 25, 100 degrees: 1, 0, 1, 2; of 0, 10, 15, 100: 1, 2, 1, 2.
    assert overlap(at(0, 10, 25, 100), at(0, 10, 15, 100)) == 0.75


def test_chunks_and_caps_change_what_they_say_only(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features, others = torch.randn(2, 41, 6, generator=generator)
    labels = torch.randint(0, 3, (41,), generator=generator)
    whole = (knn_top1(features, labels), overlap(features, others))
    monkeypatch.setattr(neighbours, "_ROWS", 7)
    assert (knn_top1(features, labels), overlap(features, others)) == whole
    every_other = torch.arange(0, 41, 2)
    assert knn_top1(features, labels, most=21) == knn_top1(features[every_other], labels[every_other])
    assert overlap(features, others, most=21) == overlap(features[every_other], others[every_other])
