from __future__ import annotations

import itertools
import math

import pytest
import torch
from small_training import Small
from torch.utils._python_dispatch import TorchDispatchMode

from kdcompress.errors import NetworkError
from kdcompress.methods import losses
from kdcompress.methods.offline.rkd import RKD

RELATIONS = [losses.mutual_distances, losses.mutual_angles]


def rows(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("relation", RELATIONS)
def test_rows_that_are_moved_turned_and_scaled_keep_their_relations(relation):
    given = rows(5, 3)
    turn = torch.linalg.qr(rows(3, 3, seed=1)).Q
    assert relation(given, 7 * given @ turn + 2).item() == pytest.approx(0, abs=1e-12)
    assert relation(given, rows(5, 4, seed=2)).item() > 1e-3


def smooth_l1(x, y):
    return 0.5 * (x - y) ** 2 if abs(x - y) < 1 else abs(x - y) - 0.5


def test_distances_are_divided_by_the_mean_of_those_between_different_rows():
    def scaled(points):
        pairs = {(i, j): math.dist(a, b) for i, a in enumerate(points) for j, b in enumerate(points)}
        mean = sum(pairs.values()) / (len(points) * (len(points) - 1))
        return {key: value / mean for key, value in pairs.items()}

    ours, theirs = rows(4, 3), rows(4, 2, seed=1)
    s, t = scaled(ours.tolist()), scaled(theirs.tolist())
    expected = sum(smooth_l1(s[key], t[key]) for key in s) / 16
    assert losses.mutual_distances(ours, theirs).item() == pytest.approx(expected)


def test_angles_are_cosines_as_seen_from_each_row():
    def cosine(points, i, j, k):
        a = [x - y for x, y in zip(points[j], points[i], strict=True)]
        b = [x - y for x, y in zip(points[k], points[i], strict=True)]
        norms = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0

    ours, theirs = rows(4, 3), rows(4, 2, seed=1)
    s, t = ours.tolist(), theirs.tolist()
    triples = itertools.product(range(4), repeat=3)
    expected = sum(smooth_l1(cosine(s, *ijk), cosine(t, *ijk)) for ijk in triples) / 64
    assert losses.mutual_angles(ours, theirs).item() == pytest.approx(expected)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("apart", [0.0, 1e-9])
def test_equal_rows_of_one_network_give_no_exploding_gradient(relation, apart):
    student = rows(4, 3).detach()
    student[2] = student[0] + apart
    student.requires_grad_()
    relation(student, rows(4, 3, seed=1)).backward()
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_too_few_rows_have_no_relations_to_differ_in(relation, count):
    student = rows(count, 3)
    loss = relation(student, rows(count, 3, seed=1))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_a_sub_batch_is_related_within_itself_and_a_smaller_rest_counts_by_its_rows(tmp_path):
    student, teacher = rows(7, 3), rows(7, 5, seed=1)
    method = Small(tmp_path, "rkd", config={"sub_batch": 4, "distance_weight": 2, "angle_weight": 3}).method
    terms = method.relations(student, teacher)
    for name, weight, relation in zip(("distance", "angle"), (2, 3), RELATIONS, strict=True):
        first, rest = relation(student[:4], teacher[:4]), relation(student[4:], teacher[4:])
        assert terms[name].item() == pytest.approx(weight * (4 * first + 3 * rest).item() / 7)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("count", [64, 100, 512])
def test_the_largest_tensor_does_not_grow_with_the_batch(count, tmp_path):
    method = Small(tmp_path, "rkd").method
    student = torch.randn(count, 16, requires_grad=True)
    with LargestTensor() as largest:
        sum(method.relations(student, torch.randn(count, 16)).values()).backward()
    assert largest.elements == 64**3


def test_a_batch_of_64_is_compared_as_a_whole_by_default(tmp_path):
    student, teacher = rows(64, 3).float(), rows(64, 5, seed=1).float()
    for sub_batch in ({}, {"sub_batch": None}):
        terms = Small(tmp_path, "rkd", config=sub_batch).method.relations(student, teacher)
        assert torch.equal(terms["distance"], 25 * losses.mutual_distances(student, teacher))
        assert torch.equal(terms["angle"], 50 * losses.mutual_angles(student, teacher))


def test_a_term_without_weight_is_not_computed(tmp_path):
    config = {"distance_weight": 0.0, "ce_weight": 0.0, "kd_weight": 0.5}
    small = Small(tmp_path, "rkd", config=config)
    assert set(small.method.losses(next(small.loader.epoch(0)))) == {"angle", "kd"}
    assert not RKD.needs(RKD.Config(**config)).labels
    assert RKD.needs(RKD.Config(kd_weight=0.0)).read_of_teacher == {"pooled"}


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("name", ["rkd", "crd"])
def test_a_network_without_a_pooled_vector_is_refused_with_what_to_name(role, name, tmp_path):
    method = Small(tmp_path, name).method
    network = getattr(method.networks, role)
    without = type(network.shapes())(logits=network.shapes().logits)
    network.shapes = lambda: without
    with pytest.raises(
        NetworkError, match=rf"method {name}: .*the {role} {network.model} has none.*{role}.taps"
    ):
        type(method)(method.config, method.networks, method.data)
