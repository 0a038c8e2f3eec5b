from __future__ import annotations

import re
import sys

import pytest
import torch
from torch import nn

from kdcompress import discovery
from kdcompress.errors import NetworkError, Uncuttable, UserError
from kdcompress.networks.build import accepted_channels, build, cuttable, family_of, segments

# Where the figures are printed: CRD (Tian et al., ICLR 2020) and the tables of those who followed it.
PUBLISHED_PARAMETERS = {
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn-40-2": 2_255_156,
    "wrn-16-2": 703_284,
    "vgg13": 9_462_180,
    "vgg8": 3_965_028,
    "mobilenet-v2": 812_836,
    "shufflenet-v1": 949_258,
    "shufflenet-v2": 1_355_528,
    "resnet50": 23_705_252,
}
# A few state-dict keys of the published checkpoints of each family.
PUBLISHED_KEYS = {
    "resnet8x4": {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.downsample.1.bias",
        "layer3.0.conv2.weight",
        "fc.bias",
    },
    "wrn-16-2": {
        "conv1.weight",
        "block1.layer.0.convShortcut.weight",
        "block3.layer.1.bn2.weight",
        "bn1.bias",
        "fc.weight",
    },
    "vgg13": {
        "block0.0.bias",
        "block0.1.running_var",
        "block0.3.weight",
        "block4.4.weight",
        "classifier.weight",
    },
    "mobilenet-v2": {"conv1.0.weight", "blocks.6.0.conv.7.bias", "conv2.1.weight", "classifier.0.weight"},
    "shufflenet-v1": {"layer1.0.conv3.weight", "layer3.3.bn3.bias", "linear.weight"},
    "shufflenet-v2": {
        "layer1.0.conv5.weight",
        "layer2.7.bn3.weight",
        "conv2.weight",
        "bn2.bias",
        "linear.bias",
    },
    "resnet50": {"layer1.0.shortcut.0.weight", "layer4.2.bn3.running_var", "linear.weight"},
}
SMALL_CIFAR = [
    "resnet8", "resnet20", "resnet8x4", "wrn-16-1", "wrn-10-2", "vgg8", "vgg13",
    "mobilenet-v2", "shufflenet-v1", "shufflenet-v2", "resnet18",
]  # fmt: skip
CUTTABLE = [
    *((f"cifar/{name}", 32) for name in SMALL_CIFAR),
    ("cifar/vgg8", 64),
    ("cifar/resnet50", 16),
    ("torchvision/resnet18", 64),
    ("torchvision/resnet50", 32),
    ("torchvision/mobilenet_v2", 64),
    ("torchvision/mobilenet_v3_small", 64),
    ("torchvision/mnasnet0_5", 64),
    ("torchvision/shufflenet_v2_x0_5", 64),
    ("torchvision/efficientnet_b0", 64),
    ("torchvision/efficientnet_v2_s", 32),
    ("torchvision/regnet_x_400mf", 64),
    ("torchvision/regnet_y_400mf", 64),
    ("torchvision/convnext_tiny", 32),
    ("torchvision/densenet121", 64),
]
CUTTABLE_TIMM = [
    "resnet18",
    "resnet26d",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "regnetx_002",
    "efficientnet_lite0",
]


def randomise_batch_norm(network: nn.Module) -> None:
    """A fresh network's statistics are 0 and 1, behind which a forgotten norm would hide."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)


def network_of(model: str, size: int, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    network = build(model, num_classes=10, channels=channels, image_size=(size, size))
    randomise_batch_norm(network)
    return network.eval()


@torch.no_grad()
def assert_chain_equals_network(model: str, size: int) -> None:
    network = network_of(model, size)
    images = torch.randn(2, 3, size, size)
    expected = network(images)
    chain = segments(model, network)
    map_BCHW, shapes = images, []
    for _, segment in chain:
        map_BCHW = segment(map_BCHW)
        shapes.append(map_BCHW.shape)
    torch.testing.assert_close(map_BCHW, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 1e-6
    names = [name for name, _ in chain]
    assert names == ["stem", *(f"stage{i}" for i in range(1, len(chain) - 1)), "head"]
    assert all(len(shape) == 4 for shape in shapes[:-1])
    # No resolution is met in two stages (but where a single pixel is down-sampled once more).
    heights = [shape[2] for shape in shapes[1:-1]]
    assert heights == sorted(heights, reverse=True)
    if size >= 64:
        assert len(set(heights)) == len(heights)


@pytest.mark.parametrize(("model", "size"), CUTTABLE)
def test_segments_applied_in_order_equal_the_network(model, size):
    assert_chain_equals_network(model, size)


@pytest.mark.parametrize(("model", "size"), [(model, 64) for model, _ in CUTTABLE])
def test_stages_of_the_chain_are_those_that_are_tapped(model, size):
    from kdcompress.networks.tapped import Tapped

    network = network_of(model, size)
    tapped = Tapped(network, model, image_size=(size, size), channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    map_BCHW, shapes = torch.zeros(2, 3, size, size), {}
    with torch.no_grad():
        for name, segment in segments(model, network):
            map_BCHW = segment(map_BCHW)
            shapes[name] = map_BCHW.shape
    found = {name: tensor.shape for name, tensor in tapped.shapes().stages.items()}
    assert {name: shape for name, shape in shapes.items() if name.startswith("stage")} == found


@pytest.mark.parametrize("name", CUTTABLE_TIMM)
def test_segments_of_timm_networks_equal_the_network(name):
    pytest.importorskip("timm")
    assert_chain_equals_network(f"timm/{name}", 64)


@pytest.mark.parametrize(
    "model", ["cifar/wrn-16-1", "cifar/vgg8", "cifar/shufflenet-v2", "torchvision/mobilenet_v2"]
)
def test_segments_share_every_parameter_with_the_network_and_hold_each_once(model):
    network = network_of(model, 32)
    inside = [id(p) for _, segment in segments(model, network) for p in segment.parameters()]
    assert len(inside) == len(set(inside))
    assert set(inside) == {id(p) for p in network.parameters()}


def test_cutting_leaves_the_network_as_it_was():
    network = network_of("cifar/vgg8", 32)
    before = [(path, id(module)) for path, module in network.named_modules()]
    segments("cifar/vgg8", network)
    assert [(path, id(module)) for path, module in network.named_modules()] == before


@pytest.mark.parametrize(("name", "count"), PUBLISHED_PARAMETERS.items())
def test_parameter_counts_at_100_classes_are_the_published_ones(name, count):
    network = build(f"cifar/{name}", num_classes=100, channels=3, image_size=(32, 32))
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize(("name", "keys"), PUBLISHED_KEYS.items())
def test_state_dictionaries_have_the_published_key_names(name, keys):
    network = build(f"cifar/{name}", num_classes=100, channels=3, image_size=(32, 32))
    assert keys <= set(network.state_dict())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SMALL_CIFAR)
def test_cifar_networks_train_on_eight_pixels(name, channels):
    network = build(f"cifar/{name}", num_classes=4, channels=channels, image_size=(8, 8)).train()
    logits = network(torch.randn(4, channels, 8, 8))
    assert logits.shape == (4, 4)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    # ReLUs may starve a weight at one pixel, but every layer is in the graph.
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", SMALL_CIFAR)
def test_cifar_networks_use_every_activation_module_once_and_not_in_place(name):
    network = network_of(f"cifar/{name}", 32)
    calls: dict[nn.Module, int] = {}
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            assert not module.inplace
            module.register_forward_hook(lambda m, *_: calls.update({m: calls.get(m, 0) + 1}))
    network(torch.randn(1, 3, 32, 32))
    assert set(calls.values()) == {1}
    assert len(calls) == sum(isinstance(module, nn.ReLU) for module in network.modules())


def test_cifar_vgg_pools_a_fourth_time_only_where_there_are_pixels_for_it():
    shapes = {}
    for size in (32, 64):
        network = network_of("cifar/vgg8", size)
        network.block4.register_forward_hook(
            lambda _m, _i, out, size=size: shapes.update({size: out.shape[-1]})
        )
        network(torch.randn(1, 3, size, size))
    assert shapes == {32: 4, 64: 4}


def test_the_shuffle_sends_channel_j_of_group_i_to_channel_i_of_group_j():
    from kdcompress.networks.cifar.shuffle import ChannelShuffle

    images = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert ChannelShuffle(3)(images).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_wide_resnets_beyond_the_listed_ones_are_understood():
    network = build("cifar/wrn-22-3", num_classes=5, channels=3, image_size=(16, 16))
    assert network.fc.in_features == 192
    with pytest.raises(NetworkError, match=r"cifar/wrn-17-2: the depth must be 10, 16, 22, … \(6n"):
        build("cifar/wrn-17-2", num_classes=5, channels=3, image_size=(16, 16))


def test_equal_seeds_build_equal_networks():
    def drawn() -> list[torch.Tensor]:
        torch.manual_seed(3)
        return list(build("cifar/shufflenet-v1", num_classes=3, channels=1, image_size=(8, 8)).parameters())

    assert all(torch.equal(a, b) for a, b in zip(drawn(), drawn(), strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "efficientnet_b0",
        "regnet_y_400mf",
    ],
)
def test_torchvision_networks_train_on_eight_pixels_where_their_architecture_allows(name):
    network = build(f"torchvision/{name}", num_classes=3, channels=3, image_size=(8, 8)).train()
    assert network(torch.randn(4, 3, 8, 8)).isfinite().all()


@pytest.mark.parametrize(("name", "least"), [("densenet121", 29), ("convnext_tiny", 32), ("vgg11_bn", 32)])
def test_too_small_images_are_refused_before_the_network_would_break_on_them(name, least):
    with pytest.raises(NetworkError, match=f"at least {least}×{least} pixels, got {least - 1}×40"):
        build(f"torchvision/{name}", num_classes=3, channels=3, image_size=(least - 1, 40))
    if name == "densenet121":
        network = build(f"torchvision/{name}", num_classes=3, channels=3, image_size=(least, least))
        assert network(torch.randn(2, 3, least, least)).shape == (2, 3)


def test_every_listed_torchvision_name_exists_there():
    from torchvision import models

    known = set(models.list_models(module=models))
    assert set(discovery.header("family", "torchvision").constants["NAMES"]) <= known


def test_listings_read_names_and_summaries_without_importing():
    for family in ("cifar", "torchvision"):
        constants = discovery.header("family", family).constants
        assert all(isinstance(summary, str) and summary for summary in constants["NAMES"].values())
    assert "timm" in discovery.header("family", "timm").summary


@pytest.mark.parametrize(("model", "message"), [
    ("resnet18", "expected FAMILY/NAME, got 'resnet18'; families: cifar, timm, torchvision"),
    ("torchvison/resnet18", "unknown family 'torchvison'.*did you mean 'torchvision'"),
    ("torchvision/resnet81", "unknown network 'resnet81' of family 'torchvision'; did you mean 'resnet18'"),
    ("cifar/vgg14", "unknown network 'vgg14' of family 'cifar'; did you mean"),
    ("torchvision/", "expected FAMILY/NAME"),
])  # fmt: skip
def test_unknown_networks_are_one_line_with_a_suggestion(model, message):
    with pytest.raises(NetworkError, match=message):
        build(model, num_classes=2, channels=3, image_size=(32, 32))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"channels": 1}, "torchvision/resnet18: takes images of 3 channels, got 1"),
    ({"num_classes": -1}, "at least one class, got -1"),
    ({"image_size": (7, 32)}, "images of 7×32 pixels are below the least, 8×8"),
])  # fmt: skip
def test_what_a_network_cannot_take_is_said(arguments, message):
    with pytest.raises(NetworkError, match=message):
        build(
            "torchvision/resnet18", **{"num_classes": 2, "channels": 3, "image_size": (32, 32), **arguments}
        )


def test_accepted_channels_and_family_need_no_network():
    assert accepted_channels("torchvision/resnet18") == {3}
    assert accepted_channels("cifar/vgg8") == accepted_channels("python:a.b:c") == {1, 3}
    assert family_of("python:a.b:c") == "python"
    assert family_of("timm/resnet18") == "timm"


def test_networks_of_timm_are_built_for_one_channel_and_for_their_size():
    pytest.importorskip("timm")
    network = build("timm/resnet18", num_classes=3, channels=1, image_size=(32, 32))
    assert network(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    vit = build("timm/vit_tiny_patch16_224", num_classes=3, channels=3, image_size=(32, 32))
    assert vit(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    expected = (
        r"timm/vit_tiny_patch16_224: a VisionTransformer is not .* can be cut: every cifar/ network; timm/"
    )
    with pytest.raises(Uncuttable, match=expected):
        segments("timm/vit_tiny_patch16_224", vit)


def test_the_list_of_networks_that_can_be_cut_holds_every_one_of_torchvision():
    """A name of the list for each that can be cut; the two others are named nowhere."""
    listed = cuttable().split("torchvision/")[1].lower()
    kinds = re.findall(r"[a-z][a-z ]+[a-z]", listed.replace(" and ", ", "))
    families = {kind.replace(" ", "_") for kind in kinds}
    for name in discovery.header("family", "torchvision").constants["NAMES"]:
        assert any(name.startswith(family) for family in families), name


@pytest.mark.parametrize(("name", "message"), [
    ("resnet81", "unknown network 'resnet81' of family 'timm'; did you mean 'resnet18'"),
    ("resnet18.a1_in1k", "model: timm/resnet18, weights: a tag"),
    ("xcit_nano_12_p8_224", "cannot be built for 3×20×20 images: .*divide image dimensions evenly"),
])  # fmt: skip
def test_what_timm_cannot_build_is_one_line(name, message):
    pytest.importorskip("timm")
    with pytest.raises(NetworkError, match=message):
        build(f"timm/{name}", num_classes=3, channels=3, image_size=(20, 20))


def test_a_missing_timm_is_said_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'kdcompress\[timm\]'"):
        build("timm/resnet18", num_classes=3, channels=3, image_size=(32, 32))


def test_a_fresh_network_neither_loses_nor_inflates_its_signal():
    torch.manual_seed(0)
    for name in ("mobilenet-v2", "vgg8", "resnet20", "wrn-16-2"):
        network = build(f"cifar/{name}", num_classes=10, channels=3, image_size=(32, 32)).eval()
        with torch.no_grad():
            spread = network(torch.randn(4, 3, 32, 32)).std()
        assert 1e-3 < spread < 1e3, (name, spread)
