from __future__ import annotations

import json

import pytest
import torch
from collaborating import FORMS, train
from small_training import ALONE, CLASSES, Small, Watcher, assert_same, images
from torch import nn
from two_processes import TESTS, run_two

from kdcompress.data.loader import EvaluationLoader
from kdcompress.errors import DataError, Interrupted, NetworkError
from kdcompress.methods import losses
from kdcompress.methods.online.kdcl import KDCL


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def kdcl(folder, peers=1, **config):
    return Small(folder, "kdcl", config={"peers": peers, "full_weight_epochs": 0, **config})


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_two(TESTS / "methods" / "collaborating.py", tmp_path_factory.mktemp("two"))


def test_naive_takes_for_each_image_the_network_that_is_best_on_it():
    first, second = rows([3, 0, 0], [0, 0, 1]), rows([1, 0, 0], [0, 5, 0])
    labels = torch.tensor([0, 1])
    target = losses.most_certain_logits(torch.stack([first, second]), labels)
    assert target.tolist() == [[3, 0, 0], [0, 5, 0]]


def test_minlogit_takes_the_smallest_logit_of_each_class_after_the_true_one_is_subtracted():
    first, second = rows([3, 1, 2]), rows([5, 4, 1])
    # Relative to class 1: (2, 0, 1) and (1, 0, -3).
    target = losses.minimum_logits(torch.stack([first, second]), torch.tensor([1]))
    assert target.tolist() == [[1, 0, -3]]


@pytest.mark.parametrize("per_row", [False, True])
def test_linear_weights_satisfy_the_conditions_of_the_best_mixture(per_row):
    torch.manual_seed(0)
    for size, count in ((0.01, 2), (1.0, 3), (8.0, 4)):
        stacked, labels = size * torch.randn(count, 9, 5, dtype=torch.float64), torch.arange(9) % 5
        weights = losses.mixture_weights(stacked, labels, per_row=per_row)
        assert weights.shape == ((9, count) if per_row else (count,))
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1], dtype=torch.float64))
        mixing = weights.detach().expand(9, count).clone().requires_grad_()
        mixed = torch.einsum("bm,mbk->bk", mixing, stacked)
        nn.functional.cross_entropy(mixed, labels, reduction="sum").backward()
        slope = mixing.grad if per_row else mixing.grad.mean(0)
        # No network is better than the mixture: the slope is smallest wherever there is weight.
        assert ((weights * slope).sum(-1) - slope.amin(-1)).max() < 1e-8 * size


def test_linear_gives_all_the_weight_to_a_network_that_is_right_when_the_other_is_wrong():
    right, wrong = rows([4, 0], [0, 4]), rows([0, 4], [4, 0])
    weights = losses.mixture_weights(torch.stack([wrong, right]), torch.tensor([0, 1]))
    assert weights.tolist() == pytest.approx([0, 1], abs=1e-9)


def test_general_weights_are_those_of_the_inverse_error_products():
    # Errors of 0.3 and 0.6, independent: weights in proportion to 1/0.3 and 1/0.6.
    products = rows([0.3, 0.0], [0.0, 0.6])
    assert losses.generalization_weights(products).tolist() == pytest.approx([2 / 3, 1 / 3])
    # Correlated ones: C⁻¹1 is in proportion to (0.6 - 0.4, 0.3 - 0.4): the worse one gets a negative weight.
    products = rows([0.3, 0.4], [0.4, 0.6])
    assert losses.generalization_weights(products).tolist() == pytest.approx([2, -1])


def test_equal_networks_and_networks_without_errors_get_equal_weights():
    equal, none = torch.full((2, 2), 0.4, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    assert losses.generalization_weights(equal, 0.01).tolist() == pytest.approx([0.5, 0.5])
    assert losses.generalization_weights(equal).tolist() == pytest.approx([0.5, 0.5])
    assert losses.generalization_weights(none, 0.01).tolist() == pytest.approx([1 / 3] * 3)


def test_the_ridge_bounds_the_weights_of_nearly_equal_networks():
    products = rows([0.7501, 0.75], [0.75, 0.7500])
    raw = losses.generalization_weights(products)
    assert raw.abs().max() > 0.9
    assert losses.generalization_weights(products, 0.01).tolist() == pytest.approx([0.5, 0.5], abs=0.01)


def test_error_products_leave_out_rows_without_a_label():
    torch.manual_seed(0)
    stacked, labels = torch.randn(2, 3, 4), torch.tensor([1, -1, 2])
    some = losses.error_products(stacked[:, [0, 2]], labels[[0, 2]])
    torch.testing.assert_close(losses.error_products(stacked, labels), some)


def test_all_networks_imitate_one_target_that_is_a_constant(tmp_path):
    method = kdcl(tmp_path, target="mean_logits").method
    torch.manual_seed(0)
    one, other = (torch.randn(4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    terms = method.terms([one, other], torch.tensor([0, 1, 2, 3]))
    assert list(terms) == ["ce_student", "kl_student", "ce_peer1", "kl_peer1"]
    mean = ((one + other) / 2).detach()
    assert terms["kl_peer1"].item() == pytest.approx(losses.kl(other, mean, 2.0).item(), rel=1e-12)
    terms["kl_student"].backward()
    assert one.grad is not None
    assert other.grad is None


@pytest.mark.parametrize(("views", "count"), [("own", 3), ("shared", 1)])
def test_each_network_sees_its_own_augmentation_unless_views_are_shared(views, count, tmp_path):
    small = kdcl(tmp_path, peers=2, views=views)
    batch = next(small.loader.epoch(0))
    assert len(batch.views) == count
    seen = []

    def spy(module, inputs):
        seen.append(inputs[0].clone())

    for network in (small.student, *small.peers):
        network.network.register_forward_pre_hook(spy)
    small.method.losses(batch)
    expected = [small.student.normalise(batch.views[k % count].images) for k in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert torch.equal(seen[0], seen[1]) == (views == "shared")


def test_as_many_networks_as_views_are_demanded(tmp_path):
    with pytest.raises(NetworkError, match=r"method\.peers is 1, and the recipe has 2 networks under peers"):
        Small(tmp_path, "kdcl", peers=["cifar/resnet8"] * 2)
    assert KDCL.needs(KDCL.Config(peers=3)).peers == 3


@pytest.mark.parametrize(
    "held_out", [lambda: (), lambda: EvaluationLoader(images(8, 8, 1, False), device="cpu")]
)
def test_general_without_labelled_held_out_images_is_refused_with_what_to_change(held_out, tmp_path):
    with pytest.raises(DataError, match=r"set data\.held_out \(such as 0\.1\), or method\.target: minlogit"):
        Small(tmp_path, "kdcl", config={"target": "general"}, data={"held_out": held_out})
    Small(tmp_path, "kdcl", config={"target": "minlogit"}, data={"held_out": held_out})


def test_general_reads_the_held_out_images_alone_in_evaluation_mode_and_leaves_no_trace(tmp_path):
    small = kdcl(tmp_path, target="general")
    held = next(iter(small.method.data.held_out()))
    before = {key: tensor.clone() for key, tensor in small.tensors().items() if not key.startswith("method")}
    seen, modes = [], []

    def spy(module, inputs):
        seen.append(inputs[0].clone())
        modes.append(module.training)

    for network in (small.student, *small.peers):
        network.train_mode(True)
        network.network.register_forward_pre_hook(spy)
    small.method.on_epoch_start(0, 2)
    assert len(seen) == 2
    assert all(torch.equal(each, small.student.normalise(held.images)) for each in seen)
    assert modes == [False, False]
    assert small.student.network.training
    after = small.tensors()
    assert_same(before, {key: after[key] for key in before})
    with torch.no_grad():
        for network in (small.student, *small.peers):
            network.network.eval()
        errors = [
            network(held.images).logits.softmax(1) - nn.functional.one_hot(held.labels, CLASSES)
            for network in (small.student, *small.peers)
        ]
    products = torch.tensor([[(a * b).sum().item() for b in errors] for a in errors])
    products += 0.01 * products.diagonal().mean() * torch.eye(2)
    weights = torch.linalg.inv(products).sum(1)
    torch.testing.assert_close(small.method.weights, weights / weights.sum(), rtol=1e-3, atol=1e-3)


def test_general_weights_are_measured_once_per_epoch_and_not_again_after_a_resume_within_it(tmp_path):
    small = kdcl(tmp_path, target="general")
    small.method.on_epoch_start(0, 2)
    first = small.method.weights.clone()
    with torch.no_grad():
        for parameter in small.peers[0].network.parameters():
            parameter.mul_(1.5)
    small.method.on_epoch_start(0, 2)
    assert torch.equal(small.method.weights, first)
    small.method.on_epoch_start(1, 2)
    assert not torch.equal(small.method.weights, first)


def test_a_run_resumed_within_an_epoch_goes_on_with_the_weights_of_its_start(tmp_path):
    config = {"target": "general", "peers": 1}
    unbroken = Small(tmp_path / "unbroken", "kdcl", config=config)
    unbroken.run()
    with pytest.raises(Interrupted):
        Small(tmp_path / "cut", "kdcl", config=config, watcher=Watcher(8)).run()
    resumed = Small(tmp_path / "cut", "kdcl", config=config)
    resumed.run()
    assert_same(unbroken.tensors(), resumed.tensors())
    lines = [
        json.loads((tmp_path / w / "log.jsonl").read_text().splitlines()[-1]) for w in ("unbroken", "cut")
    ]
    assert lines[0]["losses"] == lines[1]["losses"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FORMS)
def test_two_processes_train_what_one_trains(two, name, tmp_path):
    first, second = (seen[name] for seen in two)
    assert_same(first, second)
    expected = train(tmp_path, name, ALONE)
    for key, tensor in first.items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-7, atol=1e-7, msg=key)


@pytest.mark.exhaustive
def test_a_stop_and_resume_on_two_processes_ends_in_the_same_bits(two):
    for seen in two:
        assert seen["stopped"]
        assert_same(seen["unbroken"], seen["resumed"])
