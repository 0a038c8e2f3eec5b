from __future__ import annotations

import pytest
import torch
from sharing_norms import MAPS, train
from small_training import ALONE, Small, assert_same
from torch import nn
from two_processes import TESTS, run_two

from kdcompress.errors import NetworkError
from kdcompress.methods.fusion_method import of_one_size
from kdcompress.methods.online.ffl import Fusion


def logits(count=2):
    torch.manual_seed(0)
    return [torch.randn(4, 4, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def softmax_kl(target, learner, temperature):
    target, learner = (target / temperature).softmax(1), (learner / temperature).softmax(1)
    return temperature**2 * (target * (target / learner).log()).sum(1).mean()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_two(TESTS / "methods" / "sharing_norms.py", tmp_path_factory.mktemp("two"))


def test_networks_learn_from_the_fused_classifier_and_it_from_their_mean(tmp_path):
    method = Small(tmp_path, "ffl", config={"shift": 0.0, "ramp_epochs": 0.0, "full_weight_epochs": 0}).method
    one, other = logits()
    fused = (one * 2 - other).detach().requires_grad_()
    labels = torch.tensor([0, 1, 2, 3])
    terms = method.terms([one, other], fused, labels)
    assert list(terms) == [
        "ce_student", "ce_branch1", "ce_fused", "fused_to_student", "fused_to_branch1", "mean_to_fused",
    ]  # fmt: skip
    expected = {
        "ce_fused": nn.functional.cross_entropy(fused, labels),
        "fused_to_student": softmax_kl(fused, one, 3.0),
        "fused_to_branch1": softmax_kl(fused, other, 3.0),
        "mean_to_fused": softmax_kl((one + other) / 2, fused, 3.0),
    }
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-12), name
    terms["fused_to_student"].backward()
    assert one.grad is not None
    assert fused.grad is None  # the target is a constant
    terms["mean_to_fused"].backward()
    assert other.grad is None


def test_targets_receive_gradients_if_the_config_says_so(tmp_path):
    method = Small(tmp_path, "ffl", config={"detach": False}).method
    one, other = logits()
    fused = (one * 2).detach().requires_grad_()
    method.terms([one, other], fused, torch.zeros(4, dtype=torch.int64))["fused_to_student"].backward()
    assert fused.grad.abs().sum() > 0


def test_divergences_grow_over_the_ramp_and_cross_entropies_do_not(tmp_path):
    method = Small(tmp_path, "ffl", config={"ramp_epochs": 4.0}).method
    one, other = (z.detach() for z in logits())
    seen = []
    for epoch in (0, 2, 4, 9):
        method.on_epoch_start(epoch, 10)
        seen.append(method.terms([one, other], one + other, torch.zeros(4, dtype=torch.int64)))
    assert len({terms["ce_fused"].item() for terms in seen}) == 1
    last = seen[-1]["fused_to_branch1"].item()
    shares = [terms["fused_to_branch1"].item() / last for terms in seen]
    assert shares == pytest.approx([0.006737947, 0.286504797, 1.0, 1.0], rel=1e-6)  # exp(-5), exp(-5/4)
    method = Small(tmp_path, "ffl", config={"ramp_share": 0.5}).method
    assert [method.epochs_of(0.5, None) for _ in [method.on_epoch_start(0, 8)]] == [4]


def test_maps_of_different_sizes_are_averaged_to_the_smallest():
    large, small = torch.arange(16.0).reshape(1, 1, 4, 4), torch.ones(1, 2, 2, 4)
    got = of_one_size([large, small])
    assert got[1] is small
    expected = [[2, 3, 4, 5], [10, 11, 12, 13]]  # (0+4)/2, (1+5)/2, ...
    assert got[0].squeeze().tolist() == expected


def test_networks_of_other_classes_are_fused_to_the_students_width(tmp_path):
    config = {"form": "networks"}
    small = Small(tmp_path, "ffl", peers=["cifar/resnet14", "cifar/wrn-16-2"], config=config)
    fusion = small.method.fusion
    assert fusion.depthwise.in_channels == 64 + 64 + 128
    assert fusion.pointwise.out_channels == 64
    terms = small.method.losses(next(small.loader.epoch(0)))
    assert {"ce_peer2", "fused_to_peer2"} <= terms.keys()
    assert list(small.method.candidates()) == ["student"]


def test_branches_need_a_stage_that_they_share(tmp_path):
    with pytest.raises(NetworkError, match="branches with 3 of their own would share none"):
        Small(tmp_path, "ffl", config={"own_stages": 3})


@pytest.mark.parametrize("name", ["ffl", "mfef"])
def test_the_fusion_module_has_an_optimiser_with_its_own_weight_decay_and_the_recipes_rate(name, tmp_path):
    small = Small(tmp_path, name, optim={"lr": 0.02, "weight_decay": 3e-4}, train={"max_steps": 1})
    seen = {}
    step = small.method.step

    def spy(batch, minimise):
        seen.update({n: o.param_groups[0] for n, o in minimise.optimisers.items()})
        step(batch, minimise)

    small.method.step = spy
    small.run()
    assert {name: group["weight_decay"] for name, group in seen.items()} == {"main": 3e-4, "fusion": 1e-5}
    assert seen["main"]["lr"] == seen["fusion"]["lr"]
    assert {id(p) for p in seen["fusion"]["params"]} == {id(p) for p in small.method.fusion.parameters()}


@pytest.mark.exhaustive
def test_a_norm_over_two_processes_is_that_of_one_with_all_rows(two):
    torch.manual_seed(0)
    plain, maps = nn.BatchNorm2d(3).double(), MAPS.clone().requires_grad_()
    output = plain(maps)
    output.sin().mul(torch.arange(3.0)[:, None, None]).mean().backward()
    torch.testing.assert_close(torch.cat([seen["output"] for seen in two]), output, rtol=1e-12, atol=1e-12)
    # Each process's mean is over its rows; the trainer's mean over the processes makes it one over all.
    inputs = torch.cat([seen["input_gradient"] for seen in two]) / 2
    torch.testing.assert_close(inputs, maps.grad, rtol=1e-12, atol=1e-12)
    for name in ("weight", "bias"):
        mean = sum(seen[name] for seen in two) / 2
        torch.testing.assert_close(mean, getattr(plain, name).grad, rtol=1e-12, atol=1e-12)
    for seen in two:
        torch.testing.assert_close(seen["running_mean"], plain.running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(seen["running_var"], plain.running_var, rtol=1e-12, atol=1e-12)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["ffl", "mfef"])
@pytest.mark.parametrize("live", [False, True], ids=["frozen", "live"])
def test_two_processes_equal_one_with_the_fusions_norm_frozen_or_live(two, name, live, tmp_path):
    first, second = (seen[name, live] for seen in two)
    assert_same(first, second)
    expected = train(tmp_path, name, live, ALONE)
    for key, tensor in first.items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-8, atol=1e-8, msg=key)
    moved = first["method.fusion.classifier.weight"] - Small(tmp_path, name).method.fusion.classifier.weight
    assert moved.abs().max() > 1e-4


def test_a_fusion_of_any_sizes_gives_one_row_of_logits_per_image():
    fusion = Fusion([4, 6], 10)
    assert fusion([torch.rand(3, 4, 5, 5), torch.rand(3, 6, 2, 3)]).shape == (3, 10)
