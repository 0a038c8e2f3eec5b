from __future__ import annotations

import pytest
import torch
from competing import LARGE, PEERS, train
from small_training import ALONE, Small, Watcher, assert_same
from two_processes import TESTS, run_two

from kdcompress.methods import losses
from kdcompress.methods.online.afd import Discriminator

NONE = 1e-30
"""A learning rate that moves nothing."""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_two(TESTS / "methods" / "competing.py", tmp_path_factory.mktemp("two"))


def test_a_discriminator_is_to_tell_the_peers_maps_and_a_learner_to_pass_for_them():
    own, peer = torch.tensor([0.2, 0.4]), torch.tensor([0.9, 0.5])
    # (0.1² + 0.5²) / 2 + (0.2² + 0.4²) / 2, and (0.8² + 0.6²) / 2
    assert losses.discriminator_loss(own, peer).item() == pytest.approx(0.13 + 0.10)
    assert losses.imitation_loss(own).item() == pytest.approx(0.5)


def test_a_discriminator_judges_maps_of_any_size():
    judge = Discriminator(4, 8)
    assert [judge(torch.rand(3, 4, side, side)).shape for side in (1, 2, 7)] == [(3,)] * 3


def test_with_more_networks_each_learns_from_the_one_before(tmp_path):
    small = Small(tmp_path, "afd", peers=["cifar/resnet14", *PEERS])
    method = small.method
    # Student and peer1 have 64 channels, peer2 has 128; the student learns from peer2.
    assert [judge.layers[0].in_channels for judge in method.discriminators] == [128, 64, 64]
    assert [len(list(layer.parameters())) > 0 for layer in method.transfer] == [True, False, True]
    batch = next(small.loader.epoch(0))
    terms = method.losses(batch)
    names = ["student", "peer1", "peer2"]
    kinds = ["ce", "mimicry", "feature", "discriminator"]
    assert set(terms) == {f"{kind}_{name}" for kind in kinds for name in names}
    small.trainer._train_mode(method.phases()[0])
    student, last = (network(batch.images).logits for network in (small.student, small.peers[1]))
    _, divergence = method.logit_loss(student, last, batch.labels)
    expected = losses.kl(student, last, 3.0)
    torch.testing.assert_close(divergence, expected)
    torch.testing.assert_close(method.losses(batch)["mimicry_student"], expected, rtol=1e-4, atol=1e-5)


def test_a_discriminators_target_is_1_for_the_peers_map_and_0_for_its_own_networks(tmp_path):
    small = Small(tmp_path, "afd", float64=True)
    method, batch = small.method, next(small.loader.epoch(0))
    small.trainer._train_mode(method.phases()[0])
    terms = method.losses(batch)
    maps = [
        list(network(batch.images, frozenset({"stages"})).stages.values())[-1]
        for network in (small.student, *small.peers)
    ]
    for k, name in enumerate(["student", "peer1"]):
        own, peer = (method.discriminators[k](maps[j]).sigmoid() for j in (k, 1 - k))
        expected = ((1 - peer).square() + own.square()).mean()
        torch.testing.assert_close(terms[f"discriminator_{name}"], expected, rtol=1e-9, atol=0)


def test_there_is_a_transfer_layer_only_where_channels_differ(tmp_path):
    sets = Small(tmp_path / "equal", "afd").method.parameter_sets()
    assert list(sets) == ["main", "features", "discriminators"]
    assert "transfer" in Small(tmp_path / "other", "afd", peers=PEERS).method.parameter_sets()


def test_the_second_optimiser_is_an_adamw_at_its_own_rate_over_the_weights_before_the_last_map(tmp_path):
    small = Small(tmp_path, "afd")
    features = small.method.parameter_sets()["features"]
    assert features.optim.name == "adamw"
    assert (features.optim.lr, features.optim.weight_decay) == (2e-5, 0.1)
    networks = [network.network for network in (small.student, *small.peers)]
    names = [name for network in networks for name, _ in network.named_parameters()]
    assert len(features.parameters) == len([name for name in names if not name.startswith("fc.")])


def test_the_second_update_is_a_step_of_adamw_on_the_networks_own_weights(tmp_path):
    config = {"feature_lr": 1e-3, "feature_weight_decay": 0.1, "discriminator_lr": NONE}
    after = {}
    watcher = Watcher(1, lambda: after.update({name: w.detach().clone() for name, w in named.items()}))
    small = Small(
        tmp_path, "afd", config=config, held_out=0, float64=True, optim={"lr": NONE, "weight_decay": 0.0},
        watcher=watcher,
    )  # fmt: skip
    method, network = small.method, small.student
    small.trainer._train_mode(method.phases()[0])
    batch = next(small.loader.epoch(0))
    named = dict(network.network.named_parameters())
    before = {name: weight.detach().clone() for name, weight in named.items()}
    saved = {key: tensor.clone() for key, tensor in network.network.state_dict().items()}
    (last,) = list(network(batch.images, frozenset({"stages"})).stages.values())[-1:]
    loss = losses.imitation_loss(method.discriminators[0](last).sigmoid())
    slopes = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    network.network.load_state_dict(saved)
    for norm in (layer for layer in method.modules() if hasattr(layer, "running_mean")):
        norm.reset_running_stats()
    small.run()
    for (name, weight), slope in zip(after.items(), slopes, strict=True):
        if slope is None:
            torch.testing.assert_close(weight, before[name], rtol=0, atol=1e-12, msg=name)
            continue
        # The first step of AdamW: moments are the gradient and its square.
        expected = before[name] * (1 - 1e-3 * 0.1) - 1e-3 * slope / (slope.abs() + 1e-8)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6, msg=name)


def test_networks_end_with_the_weights_of_their_copies_and_batch_norm_moves_once_per_step(tmp_path):
    small = Small(tmp_path, "afd", config=LARGE, train={"accumulate": 2, "clip_norm": 1.0})
    small.run()
    for copy, weight in small.method._pairs():
        assert torch.equal(copy, weight)
    batches = 2 * small.loader.steps
    assert small.student.network.bn1.num_batches_tracked == batches


def test_discriminators_learn_to_tell_maps_apart_when_the_networks_do_not_move(tmp_path):
    config = {"feature_lr": NONE, "feature_weight_decay": 0.0, "discriminator_lr": 1e-2}
    small = Small(
        tmp_path, "afd", config=config, held_out=0, optim={"lr": NONE, "weight_decay": 0.0},
        train={"epochs": 12},
    )  # fmt: skip
    batch = next(small.loader.epoch(0))
    small.trainer._train_mode(small.method.phases()[0])
    before = small.method.losses(batch)["discriminator_student"].item()
    small.run()
    small.trainer._train_mode(small.method.phases()[0])
    assert small.method.losses(batch)["discriminator_student"].item() < 0.5 * before


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "accumulate"), [("frozen", 1), ("accumulated", 2)])
def test_two_processes_train_what_one_trains(two, name, accumulate, tmp_path):
    first, second = (seen[name] for seen in two)
    assert_same(first, second)
    expected = train(tmp_path, ALONE, accumulate=accumulate)
    before = Small(tmp_path / "new", "afd", peers=PEERS, config=LARGE).tensors()
    for key, tensor in first.items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-6, atol=1e-6, msg=key)
    for part in ("student.conv1", "method.discriminators.0.layers.0", "method.transfer.0.0", "peer1.fc"):
        assert (first[f"{part}.weight"] - before[f"{part}.weight"]).abs().max() > 1e-3, part


@pytest.mark.exhaustive
def test_a_stop_and_resume_on_two_processes_ends_in_the_same_bits(two):
    for seen in two:
        assert seen["stopped"]
        assert_same(seen["live"], seen["resumed"])
    assert_same(two[0]["live"], two[1]["live"])
