from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from small_training import Small, assert_same

from kdcompress.errors import NetworkError, UserError
from kdcompress.methods import losses
from kdcompress.methods.online.okddip import Attention, OKDDip
from kdcompress.train.choice import check_ship, offered


def okddip(tmp_path, **config):
    return Small(tmp_path, "okddip", config={"full_weight_epochs": 0, **config}).method


def some_logits(count):
    torch.manual_seed(0)
    return [torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def test_the_attention_is_a_softmax_of_unscaled_products_with_the_peer_itself_among_them():
    attention = Attention(2, 1).double()
    attention.query.weight.data = torch.eye(2).double()
    attention.key.weight.data = 2 * torch.eye(2).double()
    got = attention(torch.tensor([[[1.0, 0.0], [0.5, 1.0]]], dtype=torch.float64))
    products = torch.tensor([[[2.0, 1.0], [1.0, 2.5]]], dtype=torch.float64)
    torch.testing.assert_close(got, products.softmax(2))


def test_queries_and_keys_have_the_features_width_divided_by_the_factor(tmp_path):
    assert okddip(tmp_path / "8").attention.query.weight.shape == (8, 64)
    assert okddip(tmp_path / "99", factor=99).attention.key.weight.shape == (1, 64)


def test_a_target_mixes_logits_by_attention_or_is_the_mean_of_the_others(tmp_path):
    logits = torch.tensor([[[1.0, 0.0], [0.0, 4.0], [2.0, 2.0]]])
    attention = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.25, 0.25, 0.5]]])
    expected = torch.tensor([[[0.5, 2.0], [2.0, 2.0], [1.25, 2.0]]])
    assert torch.equal(okddip(tmp_path / "a").targets(logits, attention), expected)
    others = okddip(tmp_path / "m", target="mean_of_others").targets(logits, None)
    assert torch.equal(others, torch.tensor([[[1.0, 3.0], [1.5, 1.0], [0.5, 2.0]]]))


def test_the_leader_learns_from_the_mean_of_the_auxiliary_peers(tmp_path):
    method, logits = okddip(tmp_path, temperature=2.0, shift=0.0, weight=0.5), some_logits(4)
    attention = torch.full((5, 3, 3), 1 / 3, dtype=torch.float64)
    terms = method.terms(logits, attention, torch.arange(5) % 4)
    assert list(terms) == [
        f"{term}_{who}" for who in ("leader", "branch1", "branch2", "branch3") for term in ("ce", "mimicry")
    ]
    mean = torch.stack(logits[1:]).mean(0)
    expected = 0.5 * losses.kl(logits[0], mean, 2.0).item()
    assert terms["mimicry_leader"].item() == pytest.approx(expected, rel=1e-12)


def test_targets_keep_their_gradient_and_nobody_imitates_the_leader(tmp_path):
    method, logits = okddip(tmp_path), some_logits(4)
    attention = torch.full((5, 3, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
    terms = method.terms(logits, attention, torch.arange(5) % 4)
    gradients = torch.autograd.grad(terms["mimicry_leader"], logits, retain_graph=True)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    to_leader, to_attention = torch.autograd.grad(
        terms["mimicry_branch1"], [logits[0], attention], allow_unused=True
    )
    assert to_leader is None
    assert to_attention.abs().max() > 0


def test_with_constant_targets_the_attention_is_not_trained(tmp_path):
    small = Small(tmp_path, "okddip", config={"detach": True}, optim={"weight_decay": 0.1})
    before = {name: p.clone() for name, p in small.method.attention.named_parameters()}
    small.run()
    assert_same(before, dict(small.method.attention.named_parameters()))


def test_the_student_is_the_leader_and_ships_alone(tmp_path):
    small = Small(tmp_path, "okddip", train={"ship": "leader"})
    method = small.method
    assert offered(method, ema=False) == ["best", "last", "leader", "ensemble"]
    assert list(method.members()) == ["leader", "branch1", "branch2", "branch3"]
    assert method.members()["leader"].module is small.student.network
    check_ship(method, "leader", ema=False)
    with pytest.raises(UserError, match="does not offer 'branch1'"):
        check_ship(method, "branch1", ema=False)
    outcome = small.run()
    assert outcome.candidate == "leader"
    # What the others reached is known too, though none of them may ship.
    may_ship = {name: figures["may_ship"] for name, figures in outcome.candidates.items()}
    assert may_ship == {"leader": True, "branch1": False, "branch2": False, "branch3": False}
    by_default = Small(tmp_path / "default", "okddip", train={"ship": "best"}).run()
    assert by_default.candidate == "leader"


def test_without_a_leader_every_network_is_a_peer_that_may_ship(tmp_path):
    method = okddip(tmp_path, leader=False)
    assert list(method.candidates()) == ["student", "branch1", "branch2", "branch3"]
    assert len(method.cohort) == 4
    terms = method.terms(some_logits(4), torch.full((5, 4, 4), 0.25).double(), torch.arange(5) % 4)
    assert [name for name in terms if "leader" in name] == []
    assert len(terms) == 8


def test_whole_networks_have_one_leader_and_the_recipes_peers(tmp_path):
    assert OKDDip.needs(OKDDip.Config(form="networks")).peers == 3
    assert OKDDip.needs(OKDDip.Config()).peers is None
    # The leader may have another width; the attention is between the peers.
    small = Small(
        tmp_path, "okddip", student="cifar/resnet8", peers=["cifar/wrn-10-1", "cifar/resnet14"],
        config={"form": "networks"},
    )  # fmt: skip
    assert list(small.method.members()) == ["leader", "peer1", "peer2"]
    assert list(small.method.candidates()) == ["leader"]
    assert small.run().model == "cifar/resnet8"


def test_peers_of_different_widths_are_refused_unless_nothing_reads_their_features(tmp_path):
    peers = ["cifar/resnet8", "cifar/resnet8x4"]
    config = {"form": "networks"}
    with pytest.raises(NetworkError, match=r"one width, got cifar/resnet8 64, cifar/resnet8x4 256; choose"):
        Small(tmp_path / "a", "okddip", peers=peers, config=config)
    Small(tmp_path / "m", "okddip", peers=peers, config={**config, "target": "mean_of_others"})


def test_the_mean_of_the_branches_gradients_is_their_sum_divided_by_their_number(tmp_path):
    gradients = []
    for form in ("sum", "mean"):
        small = Small(tmp_path / form, "okddip", config={"stem_gradient": form}, float64=True)
        sum(small.method.losses(next(small.loader.epoch(0))).values()).backward()
        gradients.append({name: p.grad for name, p in small.student.network.named_parameters()})
    total, mean = gradients
    torch.testing.assert_close(mean["conv1.weight"], total["conv1.weight"] / 4)
    torch.testing.assert_close(mean["fc.weight"], total["fc.weight"])


def test_the_divergence_grows_over_80_of_300_epochs_or_the_same_share_of_a_run(tmp_path):
    method = okddip(tmp_path)
    for epoch, epochs, share in ((0, 300, -5), (40, 300, -1.25), (80, 300, 0), (4, 30, -1.25)):
        method.on_epoch_start(epoch, epochs)
        assert method.ramp() == pytest.approx(math.exp(share))


def test_options_that_nothing_reads_are_refused():
    with pytest.raises(ValidationError, match="own_stages and stem_gradient go with form: branches"):
        OKDDip.Config(form="networks", stem_gradient="mean")
    with pytest.raises(ValidationError, match="factor goes with target: attention"):
        OKDDip.Config(target="mean_of_others", factor=4)
