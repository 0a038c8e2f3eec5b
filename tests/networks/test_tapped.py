from __future__ import annotations

import copy
import dataclasses
import re
from itertools import pairwise

import pytest
import torch
import torchvision
from several_families import SMALL, images_for, tapped
from torch import nn

from kdcompress.data.input_spec import InputSpec
from kdcompress.errors import NetworkError
from kdcompress.networks.build import NetworkSpec
from kdcompress.networks.hooks import reading
from kdcompress.networks.tap_points import Tap
from kdcompress.networks.tapped import ALL, Tapped
from kdcompress.networks.trace import run_once


def plain(network: nn.Module, image_size: tuple[int, int] = (16, 16), **settings: object) -> Tapped:
    return Tapped(
        network, "python:x:y", image_size=image_size, channels=3, mean=(0.5,), std=(0.25,), **settings
    )  # type: ignore[arg-type]


class Straight(nn.Module):
    """Two stages, a rewritten map, and a functional tail."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.inplace = inplace
        self.fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv1(x))
        x = nn.functional.relu(self.conv2(x), inplace=self.inplace)
        return self.fc(x.mean((2, 3)))


FEW = ["cifar/resnet8x4", "cifar/vgg8", "torchvision/mobilenet_v3_small", "torchvision/densenet121"]

STAGES = {
    # what the literature calls the stages of these networks
    "cifar/resnet8x4": ["layer1", "layer2", "layer3"],
    "cifar/wrn-16-1": ["block1", "block2", "relu"],
    "cifar/vgg8": ["block0", "block1", "block2", "block4"],
    "cifar/shufflenet-v2": ["relu1", "layer1", "layer2", "relu2"],
    "torchvision/resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "torchvision/mobilenet_v2": ["features.1", "features.3", "features.6", "features.13", "features"],
    "torchvision/mobilenet_v3_small": ["features.0", "features.1", "features.3", "features.8", "features"],
    "torchvision/mnasnet0_5": ["layers.7", "layers.8", "layers.9", "layers.11", "layers"],
    "torchvision/shufflenet_v2_x0_5": ["maxpool", "stage2", "stage3", "conv5"],
    "torchvision/regnet_y_400mf": [
        "stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3", "trunk_output",
    ],
    "torchvision/densenet121": [
        "features.denseblock1", "features.denseblock2", "features.denseblock3", "features",
    ],
}  # fmt: skip


@pytest.mark.parametrize("model", STAGES)
def test_stages_are_the_last_maps_of_each_resolution_seen_from_outside_the_blocks(model):
    assert [tap.path for tap in tapped(model).taps.stages.values()] == STAGES[model]


@pytest.mark.parametrize(
    ("model", "maps"),
    [
        ("vgg11", [(64, 64), (128, 32), (256, 16), (512, 8), (512, 4)]),
        ("resnet50", [(256, 16), (512, 8), (1024, 4), (2048, 2)]),
        ("convnext_tiny", [(96, 16), (192, 8), (384, 4), (768, 2)]),
    ],
)
def test_stem_maps_that_are_pooled_at_once_and_what_pooling_leaves_are_no_stages(model, maps):
    with torch.device("meta"):
        network = getattr(torchvision.models, model)(num_classes=3)
        if model == "vgg11":
            network.classifier = nn.Linear(512 * 7 * 7, 3)  # its own has 120 million weights
    network = network.to_empty(device="cpu")
    for tensor in network.state_dict().values():
        tensor.zero_()
    settings = {"image_size": (64, 64), "channels": 3, "mean": (0.5,), "std": (0.2,)}
    found = Tapped(network, f"torchvision/{model}", **settings).shapes()
    assert [(stage.shape[1], stage.shape[2]) for stage in found.stages.values()] == maps


@pytest.mark.parametrize("model", SMALL)
def test_readings_agree_with_the_network_run_by_hand(model):
    network = tapped(model)
    network.train_mode(False)
    images = images_for(network)
    with torch.no_grad():
        got = network(images, ALL)
        expected = network.network((images - network.mean.view(1, -1, 1, 1)) / network.std.view(1, -1, 1, 1))
    torch.testing.assert_close(got.logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.classify(got.pooled), got.logits)
    assert got.stages.keys() == got.pre.keys() == network.shapes().stages.keys()
    sides = [stage.shape[2] for stage in got.stages.values()]
    assert all(a > b for a, b in pairwise(sides))


@pytest.mark.parametrize("model", SMALL)
def test_pre_becomes_the_stage_through_the_last_activation(model):
    network = tapped(model)
    network.train_mode(False)
    with torch.no_grad():
        got = network(images_for(network), ALL)
    for name, tap in network.taps.pre.items():
        if tap == network.taps.stages[name]:
            assert got.pre[name] is got.stages[name]
        else:
            activation = copy.deepcopy(network.network.get_submodule(tap.path))
            assert not torch.equal(got.pre[name], got.stages[name])
            torch.testing.assert_close(activation(got.pre[name].clone()), got.stages[name])


@pytest.mark.parametrize("model", ["cifar/resnet8x4", "torchvision/resnet18"])
def test_every_stage_of_a_resnet_has_a_map_before_its_activation(model):
    network = tapped(model)
    assert all(tap.side == "input" for tap in network.taps.pre.values())
    assert all((map_ < 0).any() for map_ in network(images_for(network), ALL).pre.values())


@pytest.mark.parametrize("model", FEW)
def test_construction_and_dry_runs_leave_the_network_and_the_generators_as_they_were(model):
    network = tapped(model)
    before = {name: tensor.clone() for name, tensor in network.network.state_dict().items()}
    state = torch.get_rng_state()
    network.network.train()
    side = network.image_size[0]
    again = Tapped(network.network, model, image_size=(side, side), channels=3, mean=(0.5,), std=(0.2,))
    again.shapes((side + 32, side + 32))
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in network.network.modules())
    for name, tensor in network.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_no_hook_outlives_a_call():
    network = tapped("torchvision/resnet18")
    network(images_for(network), ALL)
    for module in network.network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    copy.deepcopy(network.network)
    program = torch.export.export(network.network.eval(), (network.sample(),))
    assert program is not None


def test_no_hook_outlives_a_call_that_fails():
    network = plain(Straight())
    with pytest.raises(RuntimeError):
        network(torch.rand(2, 4, 16, 16)[:, :, :1, :1].expand(2, 4, 1, 1), ALL)
    assert not network.network.fc._forward_pre_hooks


def test_only_what_is_wanted_is_read():
    network = tapped("cifar/resnet8x4")
    got = network(images_for(network))
    assert got.logits is not None
    assert got.pooled is None
    assert got.stages == got.pre == {}
    got = network(images_for(network), frozenset({"pooled"}))
    assert got.logits is None
    assert got.pooled is not None


def test_readings_carry_gradients_in_training():
    for model in FEW:
        network = tapped(model)
        network.train_mode(True)
        got = network(images_for(network), ALL)
        loss = sum(
            t.square().mean() for t in [*got.stages.values(), *got.pre.values(), got.pooled, got.logits]
        )
        loss.backward()
        missing = [n for n, p in network.network.named_parameters() if p.grad is None]
        assert not missing, (model, missing)


def test_a_map_that_is_rewritten_in_place_later_is_read_before_that():
    rewriting, keeping = Straight(inplace=True), Straight(inplace=False)
    keeping.load_state_dict(rewriting.state_dict())
    taps = {"stage1": "conv1", "stage2": "conv2"}
    a, b = plain(rewriting, taps=taps), plain(keeping, taps=taps)
    assert a.taps.stages["stage2"].clone
    assert not b.taps.stages["stage2"].clone
    images = torch.rand(2, 3, 16, 16)
    got, expected = a(images, ALL), b(images, ALL)
    assert (got.stages["stage2"] < 0).any()
    torch.testing.assert_close(got.stages["stage2"], expected.stages["stage2"])


def test_a_rewritten_reading_is_our_bug_and_says_so():
    network = Straight(inplace=True)
    with (
        pytest.raises(AssertionError, match="rewritten in place"),
        torch.no_grad(),
        reading(network, [Tap("conv2", 0, "output", clone=False)]),
    ):
        network(torch.rand(2, 3, 16, 16))


def test_an_in_place_dropout_that_only_training_runs_does_not_spoil_a_reading():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(),
        nn.Dropout2d(0.5, inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip
    read = plain(network, taps={"stage1": "1"})
    read.train_mode(True)
    assert read(torch.rand(8, 3, 16, 16), ALL).stages["stage1"].shape == (8, 4, 8, 8)


def test_half_precision_reads_as_float32():
    network = tapped("cifar/resnet8x4")
    network.train_mode(False)
    images = images_for(network)
    with torch.no_grad():
        exact = network(images, ALL)
        network.precision = torch.bfloat16
        rough = network(images, ALL)
    assert rough.logits.dtype == rough.pooled.dtype == torch.float32
    assert all(t.dtype == torch.float32 for t in [*rough.stages.values(), *rough.pre.values()])
    assert not torch.equal(rough.logits, exact.logits)
    assert (rough.logits - exact.logits).abs().max() < 0.1 * exact.logits.std()
    torch.testing.assert_close(network.classify(rough.pooled), rough.logits)


def test_normalisation_gives_channels_last_images_of_mean_zero():
    network = tapped("cifar/resnet8x4")
    images = network.mean.view(1, 3, 1, 1) + torch.zeros(2, 3, 32, 32)
    images[1] += network.std.view(3, 1, 1)
    got = network.normalise(images)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got[0], torch.zeros(3, 32, 32), rtol=0, atol=1e-6)
    torch.testing.assert_close(got[1], torch.ones(3, 32, 32), rtol=0, atol=1e-6)


def test_grey_images_are_read_too():
    network = tapped("cifar/vgg8", channels=1)
    assert network(images_for(network), ALL).logits.shape == (3, 5)


def test_shapes_hold_no_data_and_follow_the_image_size():
    network = tapped("cifar/resnet8x4", num_classes=7)
    assert network.num_classes == 7
    got = network.shapes()
    assert got.logits.device.type == "meta"
    assert got.logits.shape == (2, 7)
    assert got.pooled.shape == (2, 256)
    assert [tuple(s.shape) for s in got.stages.values()] == [
        (2, 64, 32, 32),
        (2, 128, 16, 16),
        (2, 256, 8, 8),
    ]
    assert network.shapes((64, 48)).stages["stage2"].shape == (2, 128, 32, 24)


def test_train_mode_may_leave_batch_norm_alone():
    network = tapped("cifar/resnet8x4")
    network.train_mode(True, freeze_bn=True)
    before = {name: b.clone() for name, b in network.network.named_buffers()}
    assert network.network.training
    network(images_for(network))
    for name, buffer in network.network.named_buffers():
        assert torch.equal(buffer, before[name]), name
    network.train_mode(True)
    network(images_for(network))
    assert not torch.equal(network.network.bn1.running_mean, before["bn1.running_mean"])
    network.train_mode(False)
    assert not any(module.training for module in network.network.modules())


def test_functional_runs_on_other_tensors_and_lets_the_gradient_through():
    network = tapped("cifar/resnet8x4")
    network.train_mode(False)
    images = images_for(network)
    doubled = {
        n: (2 * p).detach().requires_grad_() for n, p in network.network.named_parameters() if n[:2] == "fc"
    }
    got = network.functional(doubled, images, ALL)
    expected = network(images, ALL)
    torch.testing.assert_close(got.logits, 2 * expected.logits)
    torch.testing.assert_close(got.stages["stage3"], expected.stages["stage3"])
    got.logits.sum().backward()
    assert doubled["fc.weight"].grad is not None
    assert network.network.fc.weight.grad is None


def test_a_functional_pass_in_training_leaves_the_networks_own_buffers_alone():
    network = tapped("cifar/resnet8x4")
    network.train_mode(True)
    images, buffers = images_for(network), dict(network.network.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    given = {"bn1.running_mean": torch.zeros(32)}
    got = network.functional(given, images, ALL)
    for name, buffer in network.network.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, before[name]), name
    assert not torch.equal(given["bn1.running_mean"], torch.zeros(32))
    # Batch norm in training mode normalises with the batch, so the outputs are those of an ordinary pass.
    own = network.functional({}, images, ALL, update_buffers=True)
    torch.testing.assert_close(own.logits, got.logits)
    assert not torch.equal(network.network.bn1.running_mean, before["bn1.running_mean"])


def test_a_network_is_specified_and_its_input_too():
    network = tapped("cifar/resnet8x4")
    assert network.spec == NetworkSpec("cifar/resnet8x4", 5, 3, (32, 32), allow_code=True)
    assert network.spec.build().state_dict().keys() == network.network.state_dict().keys()
    assert network.input_spec == InputSpec(3, 32, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    spec = InputSpec(3, 40, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize=48, crop=40)
    given = Tapped(network.network, "cifar/resnet8x4", input_spec=spec)
    assert (given.input_spec, given.image_size, given.channels) == (spec, (40, 32), 3)
    torch.testing.assert_close(given.mean, torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(given.std, torch.tensor([0.4, 0.5, 0.6]))
    assert given.at((64, 64)).input_spec == dataclasses.replace(spec, height=64, width=64)
    assert given.with_network(copy.deepcopy(network.network)).input_spec == spec
    grey = Tapped(Straight(), "x/y", image_size=(16, 16), channels=3, mean=(0.5,), std=(0.25,))
    assert grey.input_spec == InputSpec(3, 16, 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_classify_lets_the_gradient_through_to_its_input():
    network = tapped("cifar/resnet8x4")
    pooled = torch.rand(2, 256, requires_grad=True)
    network.classify(pooled).sum().backward()
    torch.testing.assert_close(pooled.grad, network.network.fc.weight.sum(0).expand(2, -1))


def test_named_taps_replace_the_found_ones():
    network = tapped("cifar/resnet8x4", stage1="layer1", stage2="layer3")
    assert [tap.path for tap in network.taps.stages.values()] == ["layer1", "layer3"]
    assert network.taps.classifier.path == "fc"
    assert network.taps.pre["stage2"].path.startswith("layer3.0.relu")


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        ({"stage1": "layr1"}, "no module 'layr1'; did you mean 'layer1'?"),
        ({"stage1": "zzz"}, "taps.stage1: no module 'zzz'; choices: "),
        ({"first": "layer1"}, "taps.first: a tap is named stage1, stage2, ... or classifier"),
        ({"stage1": "fc"}, r"'fc' gives shape \[2, 5\]; a stage is a map of shape"),
    ],
)
def test_a_wrong_tap_is_told_with_what_to_change(taps, message):
    with pytest.raises(NetworkError, match=message):
        tapped("cifar/resnet8x4", **taps)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fc(x.mean((2, 3))), x


def test_networks_that_are_no_classifiers_of_such_images_are_refused():
    with pytest.raises(NetworkError, match=r"returns tuple, expected logits of shape \[batch, classes\]"):
        plain(TwoOutputs())
    with pytest.raises(NetworkError, match=r"returns \[2, 3, 16, 16\], expected logits"):
        plain(nn.Identity())
    with pytest.raises(
        NetworkError, match=r"cannot run on images of 3x16x16.*choose another data\.image_size"
    ):
        plain(nn.Conv2d(4, 4, 3))
    with pytest.raises(NetworkError, match="mean has 2 values for images of 3 channels"):
        Tapped(Straight(), "x/y", image_size=(16, 16), channels=3, mean=(0.1, 0.2), std=(1.0,))
    with pytest.raises(NetworkError, match="std must be positive"):
        Tapped(Straight(), "x/y", image_size=(16, 16), channels=3, mean=(0.1,), std=(0.0,))


def test_a_network_without_a_linear_classifier_still_gives_logits_and_stages():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    read = plain(network)
    assert read.num_classes == 5
    assert list(read.shapes().stages) == ["stage1"]
    with pytest.raises(NetworkError, match=r"do not come from a linear layer.*taps: \{classifier"):
        read(torch.rand(2, 3, 16, 16), ALL)


class Moody(nn.Module):
    """Calls another module in training than in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.calm, self.wild = nn.ReLU(), nn.ReLU()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = self.wild(x) if self.training else self.calm(x)
        return self.fc(x.mean((2, 3)))


def test_a_network_that_runs_otherwise_in_training_is_told_where():
    network = plain(Moody())
    network.train_mode(True)
    with pytest.raises(NetworkError, match="'calm' is not called in this pass"):
        network(torch.rand(2, 3, 16, 16), ALL)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError("height (8) should be divisible by 16"), "height (8) should be divisible by 16"),
        (AssertionError(), "AssertionError"),
        (KeyError("stem"), "KeyError: 'stem'"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_a_network_raises_on_its_images_is_told_with_the_image_size(error, reason):
    def network(images):
        raise error

    message = f"mine: cannot run on images of 3x8x8 (channels x height x width): {reason}; choose another"
    with pytest.raises(NetworkError, match=re.escape(message)):
        run_once(network, torch.zeros(2, 3, 8, 8), "mine")
