from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from small_training import Small

from kdcompress.methods.losses import kl
from kdcompress.methods.online.dml import DML


def logits(count=3):
    torch.manual_seed(0)
    return [torch.randn(4, 4, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def dml(tmp_path, peers=2, **config):
    return Small(tmp_path, "dml", peers=["cifar/resnet8"] * peers, config=config).method


def test_networks_that_agree_have_nothing_to_learn_from_each_other(tmp_path):
    one = logits(1)[0]
    method = dml(tmp_path)
    assert method.mimicry([one, one, one], 0).item() == pytest.approx(0, abs=1e-12)


def test_a_target_is_a_constant_unless_the_config_says_otherwise(tmp_path):
    for detach in (True, False):
        rows = logits()
        dml(tmp_path, detach=detach).mimicry(rows, 1).backward()
        assert rows[1].grad is not None
        assert all((rows[i].grad is None) == detach for i in (0, 2))


def test_the_code_sums_over_the_other_networks_and_the_paper_takes_their_mean(tmp_path):
    rows = logits()
    total, mean = dml(tmp_path), dml(tmp_path, over_peers="mean")
    assert total.mimicry(rows, 0).item() == pytest.approx(2 * mean.mimicry(rows, 0).item(), rel=1e-12)
    assert total.mimicry(rows[:2], 0).item() == pytest.approx(mean.mimicry(rows[:2], 0).item(), rel=1e-12)


def test_every_network_has_its_two_terms(tmp_path):
    small = Small(tmp_path, "dml", peers=["cifar/resnet8"] * 2)
    terms = small.method.losses(next(small.loader.epoch(0)))
    names = [f"{term}_{who}" for who in ("student", "peer1", "peer2") for term in ("ce", "mimicry")]
    assert list(terms) == names


def test_peers_begin_with_weights_of_their_own_and_the_best_of_the_students_class_ships(tmp_path):
    small = Small(tmp_path, "dml", peers=["cifar/resnet8", "cifar/resnet14"])
    assert list(small.method.candidates()) == ["student", "peer1"]
    first, second = (n.network.fc.weight for n in (small.student, small.peers[0]))
    assert not torch.equal(first, second)
    outcome = small.run()
    assert outcome.candidate in ("student", "peer1")
    assert outcome.model == "cifar/resnet8"


def test_sequential_updates_show_each_network_what_the_one_before_has_become(tmp_path):
    options = {"update": "sequential", "full_weight_epochs": 0}
    config = {"config": options, "train": {"max_steps": 1}, "held_out": 0, "float64": True}
    small = Small(tmp_path / "run", "dml", **config)
    twin = Small(tmp_path / "by_hand", "dml", **config)
    small.run()
    batch = next(twin.loader.epoch(0))
    networks = [twin.student, *twin.peers]
    rate = twin.trainer.job.optim.lr  # the cosine's first step
    decay = twin.trainer.job.optim.weight_decay
    for network in networks:
        network.train_mode(True)
    first, second = (network(batch.images).logits for network in networks)
    loss = torch.nn.functional.cross_entropy(first, batch.labels) + kl(first, second.detach(), 1)
    update_by_hand(networks[0], loss, rate, decay)
    with torch.no_grad():
        moved = networks[0](batch.images).logits
    loss = torch.nn.functional.cross_entropy(second, batch.labels) + kl(second, moved, 1)
    update_by_hand(networks[1], loss, rate, decay)
    for network, trained in zip(networks, [small.student, *small.peers], strict=True):
        for key, tensor in trained.network.state_dict().items():
            torch.testing.assert_close(tensor, network.network.state_dict()[key], rtol=1e-9, atol=1e-12)


def update_by_hand(network, loss, rate, decay):
    """The first step of SGD with Nesterov momentum 0.9."""
    loss.backward(inputs=list(network.network.parameters()))
    with torch.no_grad():
        for parameter in network.network.parameters():
            parameter -= rate * 1.9 * (parameter.grad + decay * parameter)


def test_sequential_updates_keep_the_targets_constant():
    with pytest.raises(ValidationError, match="leave detach: true"):
        DML.Config(update="sequential", detach=False)


def test_a_guard_goes_with_the_form_it_belongs_to():
    assert DML.Config(guard=1e-8).guard == 1e-8
    with pytest.raises(ValidationError, match="guard goes with temperature 1 and shift 0"):
        DML.Config(guard=1e-8, temperature=2.0)
