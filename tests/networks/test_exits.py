from __future__ import annotations

import copy

import pytest
import torch
from several_families import SMALL, images_for, tapped
from torch import nn

from kdcompress.errors import NetworkError, Uncuttable
from kdcompress.networks.build import segments
from kdcompress.networks.exits import exit_after, own_exit
from kdcompress.networks.tapped import ALL, Tapped
from kdcompress.tasks import EMBEDDING


@pytest.mark.parametrize("model", SMALL)
def test_a_networks_own_exits_give_its_last_map_pooled_features_and_logits(model):
    network = tapped(model)
    network.train_mode(False)
    images = images_for(network)
    with torch.no_grad():
        expected = network(images, ALL)
        found = 0
        for stage, map_ in expected.stages.items():
            try:
                _, exit_ = own_exit(network, stage)
            except Uncuttable:
                continue
            found += 1
            before = map_.clone()
            got = exit_(map_)
            assert torch.equal(map_, before)
            torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(got.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
            last = list(expected.stages.values())[-1]
            torch.testing.assert_close(got.stages["map"], last, rtol=1e-4, atol=1e-5)
    assert found >= 2


@pytest.mark.parametrize(
    "model", ["cifar/resnet8x4", "cifar/vgg8", "cifar/wrn-16-1", "torchvision/mobilenet_v2"]
)
def test_an_exit_is_what_follows_the_stage_with_weights_of_its_own(model):
    network = tapped(model)
    for stage, map_ in network.shapes().stages.items():
        exit_ = exit_after(network, stage)
        own = {id(p) for p in network.network.parameters()}
        assert not any(id(p) in own for p in exit_.parameters())
        assert all(module.training for module in exit_.modules())
        exit_.eval()
        got = exit_(torch.rand(map_.shape))
        assert got.logits.shape == (2, 5)
        assert got.pooled.shape == network.shapes().pooled.shape
        # With the network's own weights the exit continues the network.
        chain = segments(model, network.network)
        names = [name for name, _ in exit_.named_children()]
        if names == [name for name, _ in chain][-len(names) :]:
            for name, segment in chain[-len(names) :]:
                exit_.get_submodule(name).load_state_dict(segment.state_dict())
            network.train_mode(False)
            read = network(images_for(network), ALL)
            torch.testing.assert_close(exit_(read.stages[stage]).logits, read.logits)


def test_exits_are_drawn_from_the_global_generator():
    network = tapped("cifar/resnet8x4")
    torch.manual_seed(1)
    first, second = exit_after(network, "stage2"), exit_after(network, "stage2")
    torch.manual_seed(1)
    third = exit_after(network, "stage2")
    weights = [next(exit_.parameters()) for exit_ in (first, second, third)]
    assert torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_a_shortened_exit_keeps_the_first_blocks_of_each_later_stage():
    network = tapped("cifar/resnet20")
    full, short = exit_after(network, "stage1"), exit_after(network, "stage1", blocks=1)
    assert [len(full.stage2), len(full.stage3)] == [3, 3]
    assert [len(short.stage2), len(short.stage3)] == [1, 1]
    got = short(torch.rand(network.shapes().stages["stage1"].shape))
    assert (got.logits.shape, got.pooled.shape) == ((2, 5), (2, 64))
    assert got.stages["map"].shape == network.shapes().stages["stage3"].shape
    with pytest.raises(NetworkError, match="at least 1 block"):
        exit_after(network, "stage1", blocks=0)


def test_a_shortened_exit_keeps_blocks_that_change_the_width():
    network = tapped("torchvision/mobilenet_v2")
    short = exit_after(network, "stage3", blocks=1)
    assert sum(p.numel() for p in short.parameters()) < sum(
        p.numel() for p in exit_after(network, "stage3").parameters()
    )
    assert short(torch.rand(network.shapes().stages["stage3"].shape)).logits.shape == (2, 5)


@pytest.mark.parametrize("model", ["cifar/resnet8x4", "cifar/vgg8", "torchvision/mobilenet_v3_small"])
def test_an_exit_may_have_other_classes(model):
    network = tapped(model)
    exit_ = exit_after(network, "stage2", num_classes=20)
    got = exit_(torch.rand(network.shapes().stages["stage2"].shape))
    assert got.logits.shape == (2, 20)
    assert got.pooled.shape == network.shapes().pooled.shape
    assert network.num_classes == 5


def test_an_exit_reads_float32_in_the_precision_that_the_network_has_by_then():
    network = tapped("cifar/resnet8x4")
    exit_ = exit_after(network, "stage2")
    kept = copy.deepcopy(exit_)
    exit_.eval()
    kept.eval()
    map_ = torch.rand(network.shapes().stages["stage2"].shape)
    exact = exit_(map_)
    network.precision = torch.bfloat16
    for rough in (exit_(map_), kept(map_)):
        for a, b in [
            (rough.logits, exact.logits),
            (rough.pooled, exact.pooled),
            (rough.stages["map"], exact.stages["map"]),
        ]:
            assert a.dtype == torch.float32
            assert not torch.equal(a, b)
            assert (a - b).abs().max() < 0.1 * b.abs().max()


def test_an_exit_holds_its_own_chain_and_nothing_of_the_network():
    network = tapped("cifar/resnet8x4")
    exit_ = exit_after(network, "stage1")
    assert [name for name, _ in exit_.named_children()] == ["stage2", "stage3", "head"]
    copied = copy.deepcopy(exit_)
    assert copied._autocast is exit_._autocast
    shared = {id(p) for p in exit_.parameters()}
    assert not any(id(p) in shared for p in copied.parameters())
    exit_(torch.rand(network.shapes().stages["stage1"].shape))
    assert not any(module._forward_pre_hooks for module in exit_.modules())


def test_gradients_flow_through_all_that_an_exit_reads():
    network = tapped("torchvision/densenet121")
    exit_ = exit_after(network, "stage3")
    map_ = torch.rand(network.shapes().stages["stage3"].shape, requires_grad=True)
    got = exit_(map_)
    sum(t.square().mean() for t in [got.logits, got.pooled, got.stages["map"]]).backward()
    assert map_.grad is not None
    assert all(p.grad is not None for p in exit_.parameters())


def test_an_exit_of_a_backbone_has_pooled_features_and_no_logits():
    network = tapped("cifar/resnet8x4").spec
    built = Tapped(
        copy.deepcopy(nn.Module.eval(network.__class__("cifar/resnet8x4", 0, 3, (32, 32)).build())),
        "cifar/resnet8x4", image_size=(32, 32), channels=3, mean=(0.5,), std=(0.2,), task=EMBEDDING,
    )  # fmt: skip
    got = exit_after(built, "stage2")(torch.rand(built.shapes().stages["stage2"].shape))
    assert got.logits is None
    assert got.pooled.shape == (2, 256)
    with pytest.raises(NetworkError, match="does not end in a linear classifier"):
        exit_after(built, "stage2", num_classes=20)


def test_what_cannot_be_cut_says_so():
    network = tapped("torchvision/resnet18")
    with pytest.raises(NetworkError, match="no stage 'stage9'; did you mean"):
        exit_after(network, "stage9")
    inside = tapped("torchvision/resnet18", stage1="layer1.0.conv1")
    with pytest.raises(Uncuttable, match=r"cannot be cut behind stage1 \(layer1.0.conv1\)"):
        exit_after(inside, "stage1")


def test_a_cut_is_found_though_blocks_that_start_as_the_identity_surround_it():
    network = tapped("cifar/resnet20")
    with torch.no_grad():
        for path, module in network.network.named_modules():
            if path.startswith("layer1.") and path.endswith("bn2"):
                module.weight.zero_()
                module.bias.zero_()
    chain = dict(segments("cifar/resnet20", network.network))
    assert len(exit_after(network, "stage1")) == len(chain) - 2
    inner = Tapped(
        network.network, "cifar/resnet20", image_size=(32, 32), channels=3, mean=(0.5,), std=(0.2,),
        taps={"stage1": "layer1.0"},
    )  # fmt: skip
    assert len(exit_after(inner, "stage1").stage1) == 2
