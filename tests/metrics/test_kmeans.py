from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from kdcompress.errors import DataError
from kdcompress.metrics import kmeans
from kdcompress.metrics.clustering import matched_accuracy
from kdcompress.metrics.kmeans import Whitening, cluster


def blobs(count, clusters=4, width=6, noise=0.1, seed=0):
    """Points around the axes, and the axis of each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, clusters, (count,), generator=generator)
    return torch.eye(clusters, width)[labels] + noise * torch.randn(count, width, generator=generator), labels


def test_clouds_that_lie_apart_are_the_clusters():
    points, labels = blobs(200)
    found = cluster(points, 4, seed=0, normalise=False)
    assert matched_accuracy(found.assigned, labels) == 1
    assert found.assigned.dtype == torch.int64
    assert found.centres.shape == (4, 6)
    for number in range(4):
        members = points[found.assigned == number]
        torch.testing.assert_close(found.centres[number], members.mean(0), rtol=1e-4, atol=1e-5)
    squares = (points - found.centres[found.assigned]).square().sum().item()
    assert found.inertia == pytest.approx(squares, rel=1e-4)


def test_whitened_features_have_equal_variance_in_every_direction_kept():
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([100.0, 10, 1, 0.001])
    features = torch.randn(500, 4, generator=generator) * scales @ torch.randn(4, 4, generator=generator) + 7
    whitening = Whitening.of(features)
    components = (features - whitening.mean) @ whitening.directions
    covariance = components.T @ components / len(features)
    torch.testing.assert_close(covariance, torch.eye(components.shape[1]), rtol=0, atol=1e-2)
    assert components.shape[1] < 4  # the last direction has next to no variance
    assert torch.allclose(whitening(features).norm(dim=1), torch.ones(500))


def test_whitening_finds_clouds_that_lie_apart_in_a_direction_of_little_variance():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    points = torch.stack([labels * 2.0 - 1, 30 * torch.randn(400, generator=generator)], 1)
    points = points + 0.05 * torch.randn(400, 2, generator=generator)
    assert matched_accuracy(cluster(points, 2, 0, normalise=False).assigned, labels) < 0.7
    wide = Whitening(points.mean(0), torch.diag(1 / points.std(0)))
    assert matched_accuracy(cluster(wide(points), 2, 0).assigned, labels) > 0.9


def test_features_without_any_difference_are_not_whitened():
    with pytest.raises(DataError, match="all images have the same features"):
        Whitening.of(torch.full((10, 3), 2.0))


def test_normalised_vectors_are_clustered_by_their_angle_and_others_by_their_place():
    near, far = torch.tensor([1.0, 0.0]), torch.tensor([0.9, 0.4])
    points = torch.stack([near, far, 10 * near, 10 * far])
    assert cluster(points, 2, 0).assigned.tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert cluster(points, 2, 0, normalise=False).assigned.tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert torch.equal(points[2], 10 * near)  # the caller's vectors stay


def test_a_seed_gives_the_same_clusters_and_more_starts_no_worse_ones():
    points = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    one, same = (cluster(points, 8, seed=3) for _ in range(2))
    assert torch.equal(one.assigned, same.assigned)
    assert torch.equal(one.centres, same.centres)
    single = [cluster(points, 8, seed=seed, starts=1).inertia for seed in range(6)]
    assert max(single) > min(single)
    assert cluster(points, 8, seed=3, starts=30).inertia <= min(single)


def test_fewer_images_or_fewer_distinct_vectors_than_clusters_are_refused():
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    with pytest.raises(DataError, match="4 clusters of 3 images are not possible; ask for at most 3"):
        cluster(points, 4, 0)
    with pytest.raises(DataError, match=r"3 images have only 2 distinct feature vectors, .* at most 2"):
        cluster(points, 3, 0)  # of length 1, two of them are the same
    assert cluster(points, 3, 0, normalise=False).assigned.unique().tolist() == [0, 1, 2]


def test_repeated_vectors_are_one_cluster():
    points = torch.eye(3).repeat_interleave(5, 0)
    found = cluster(points, 3, 0)
    assert [len(found.assigned[i : i + 5].unique()) for i in (0, 5, 10)] == [1, 1, 1]
    assert found.assigned.unique().tolist() == [0, 1, 2]


def test_vectors_that_rounding_makes_one_give_fewer_clusters_numbered_without_gaps():
    points = torch.eye(3)[[0, 0, 1, 2]]
    points[1, 0] = 1 + 1.2e-7  # the next float32
    found = cluster(points, 4, 0, normalise=False)
    assert found.assigned.unique().tolist() == list(range(len(found.centres)))
    assert len(found.centres) in (3, 4)


def test_a_cluster_that_becomes_empty_begins_again_elsewhere(monkeypatch):
    points, labels = blobs(60, clusters=3, width=3)
    # k-means++ would begin at the points themselves; the third centre here is nearest to none of them.
    far = np.array([[1, 0, 0], [0, 1, 0], [500, 500, 500]], dtype=np.float32)
    monkeypatch.setattr(kmeans, "KMeans", functools.partial(KMeans, init=far))
    found = cluster(points, 3, 0, starts=1, normalise=False)
    assert found.centres.shape == (3, 3)
    assert matched_accuracy(found.assigned, labels) == 1
    assert found.inertia < 5
