"""The two classifiers that are made of frozen features, and their clusters."""

from __future__ import annotations

import math

import pytest
import torch

from kdcompress.errors import DataError, NonFiniteOutputs
from kdcompress.probe import linear as linear_file
from kdcompress.probe.clusters import clusters, pixel_values
from kdcompress.probe.features import Features, features, pooled, variance
from kdcompress.probe.knn import knn
from kdcompress.probe.linear import DEFAULT, STRENGTHS, linear


def clouds(count, apart, seed, classes=3, width=5):
    """Points around the axes, `apart` times as far out as they scatter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, width, generator=generator)
    return Features(apart * torch.eye(classes, width)[labels] + noise, labels)


# ---- nearest neighbours


def test_knn_is_the_weighted_vote_of_the_most_similar():
    bank, queries = clouds(30, 1.0, 0), clouds(9, 1.0, 1).values
    for query, got in zip(queries, knn(bank, queries, 3, k=7).tolist(), strict=True):
        votes = [0.0, 0.0, 0.0]
        cosines = [
            sum(a * b for a, b in zip(query.tolist(), row.tolist(), strict=True))
            / math.hypot(*query.tolist()) / math.hypot(*row.tolist())
            for row in bank.values
        ]  # fmt: skip
        for cosine, label in sorted(zip(cosines, bank.labels.tolist(), strict=True), reverse=True)[:7]:
            votes[label] += math.exp(cosine / 0.07)
        assert got == votes.index(max(votes))


def test_knn_weighs_one_near_neighbour_above_two_farther_ones():
    bank = Features(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([0, 1, 1]))
    # exp(1 / 0.07) against 2 exp(0.6 / 0.07)
    assert knn(bank, torch.tensor([[5.0, 0.0]]), 2, k=3).tolist() == [0]
    # exp(1) against 2 exp(0.6): a high temperature counts heads
    assert knn(bank, torch.tensor([[5.0, 0.0]]), 2, k=3, temperature=1.0).tolist() == [1]
    # exp(0.6 / 0.07) twice beats exp(0.64 / 0.07), which alone is the most similar
    near = Features(torch.tensor([[0.64, 0.7684], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([0, 1, 1]))
    assert knn(near, torch.tensor([[1.0, 0.0]]), 2, k=1).tolist() == [0]
    assert knn(near, torch.tensor([[1.0, 0.0]]), 2, k=3).tolist() == [1]


def test_knn_does_not_see_how_long_features_are():
    bank, queries = clouds(30, 2.0, 0), clouds(9, 2.0, 1).values
    longer = Features(bank.values * torch.rand(30, 1).add(0.1), bank.labels)
    assert torch.equal(knn(bank, queries, 3), knn(longer, 100 * queries, 3))


def test_knn_in_chunks_is_knn_at_once(monkeypatch):
    bank, queries = clouds(40, 1.0, 0), clouds(11, 1.0, 1).values
    at_once = knn(bank, queries, 3)
    monkeypatch.setattr("kdcompress.probe.knn._CHUNK", 4)
    assert torch.equal(knn(bank, queries, 3), at_once)


# ---- linear


def test_linear_tells_clouds_apart_that_lie_apart():
    test = clouds(60, 8.0, 1)
    found = linear(clouds(90, 8.0, 0), test.values, clouds(30, 8.0, 2))
    assert torch.equal(found.classes, test.labels)
    assert found.converged
    # All are equally good on clouds this far apart: the strongest penalty stays.
    assert (found.strength, found.chosen) == (STRENGTHS[0], True)


def test_linear_chooses_its_strength_by_the_held_out_images():
    train, test = clouds(12, 1.0, 0, width=40), clouds(60, 1.0, 1, width=40)
    held_out = clouds(200, 1.0, 2, width=40)
    found = linear(train, test.values, held_out)
    alone = {}
    for strength in STRENGTHS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear_file, "STRENGTHS", (strength,))
            right = linear(train, held_out.values, held_out).classes == held_out.labels
            alone[strength] = float(right.double().mean())
    assert len(set(alone.values())) > 1, alone
    assert alone[found.strength] == max(alone.values())


def test_linear_does_not_see_the_scale_of_a_feature_and_survives_a_dead_one():
    train, test = clouds(90, 2.0, 0), clouds(60, 2.0, 1)
    scale = torch.tensor([1.0, 100.0, 0.01, 1.0, 0.0])
    plain = linear(Features(train.values[:, :4], train.labels), test.values[:, :4], None)
    scaled = linear(Features(train.values * scale, train.labels), test.values * scale, None)
    assert torch.equal(plain.classes, scaled.classes)


def test_linear_with_nothing_held_out_says_so():
    found = linear(clouds(30, 2.0, 0), clouds(3, 2.0, 1).values, None)
    assert (found.strength, found.chosen) == (DEFAULT, False)


def test_linear_of_one_class_is_refused():
    train = clouds(30, 2.0, 0)
    with pytest.raises(DataError, match="at least two classes"):
        linear(Features(train.values, torch.zeros(30, dtype=torch.int64)), train.values, None)


def test_linear_says_when_it_has_not_converged(monkeypatch):
    monkeypatch.setattr(linear_file, "MOST_STEPS", 2)
    assert not linear(clouds(90, 0.5, 0), clouds(3, 0.5, 1).values, None).converged


# ---- clusters


def test_clusters_are_as_many_as_classes_by_the_angle_of_features_and_the_place_of_pixels():
    images = clouds(60, 8.0, 0)
    longer = Features(images.values * torch.rand(60, 1).add(0.1) * 100, images.labels)
    dark = Features(torch.rand(60, 4), images.labels)
    found = clusters(longer, dark, 3, seed=0)
    assert found.figures == pytest.approx({"nmi": 1, "ari": 1, "accuracy": 1, "purity": 1})
    assert found.pixels["nmi"] < 0.5
    # Pixels are not normalised: here their length alone tells the classes apart.
    bright = Features(images.labels.add(1.0)[:, None] * torch.ones(60, 4) + 0.01 * dark.values, images.labels)
    assert clusters(bright, bright, 3, seed=0).pixels["accuracy"] == 1


def test_large_images_are_shrunk_before_their_pixels_are_clustered():
    assert torch.equal(pixel_values(torch.ones(2, 1, 28, 28)), torch.ones(2, 784))
    assert pixel_values(torch.rand(2, 1, 32, 32)).shape == (2, 1024)
    assert pixel_values(torch.rand(2, 3, 32, 48)).shape == (2, 3 * 18 * 18)
    torch.testing.assert_close(pixel_values(torch.full((2, 3, 64, 64), 0.4)), torch.full((2, 972), 0.4))


# ---- features


def test_pooled_is_what_the_classifier_reads_and_the_network_is_frozen():
    from small_training import tapped

    torch.manual_seed(0)
    network = tapped("cifar/resnet8", 8)
    network.train_mode(True)
    read = pooled(network)
    images = torch.rand(6, 3, 8, 8)
    before = {key: value.clone() for key, value in network.network.state_dict().items()}
    values = read(images)
    torch.testing.assert_close(network.classify(values), network(images).logits)
    assert not any(parameter.requires_grad for parameter in network.network.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.network.state_dict().items())


def test_features_of_batches_are_those_of_the_whole():
    images, labels = torch.rand(7, 1, 2, 2), torch.tensor([0, 1, -1, 1, 0, -1, 1])
    whole = features(lambda x: x.flatten(1), zip(images.split(3), labels.split(3), strict=True))
    assert torch.equal(whole.values, images.flatten(1))
    assert whole.labelled().labels.tolist() == [0, 1, 1, 0, 1]
    assert torch.equal(whole.labelled().values, images[labels >= 0].flatten(1))


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(NonFiniteOutputs, match="not finite"):
        features(lambda x: x.flatten(1) / 0, [(torch.zeros(2, 1, 1, 1), torch.zeros(2))])


def test_variance_is_the_mean_squared_distance_to_the_mean():
    assert variance(torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])) == pytest.approx(8 / 3)
    with pytest.raises(DataError, match="the same features"):
        variance(torch.full((4, 3), 0.1))
