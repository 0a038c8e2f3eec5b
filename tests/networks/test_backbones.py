from __future__ import annotations

import sys
import textwrap

import pytest
import torch
from several_families import SMALL, images_for, randomise_batch_norm
from several_families import tapped as with_classifier
from torch import nn

from kdcompress.errors import NetworkError, UserError, WeightsError
from kdcompress.networks import weights
from kdcompress.networks.activations import LOGITS, POOLED
from kdcompress.networks.build import build, segments
from kdcompress.networks.families._headless import without_classifier
from kdcompress.networks.from_recipe import headless_teacher, load_network, teacher_needs_training
from kdcompress.networks.read_checkpoint import read_state_dict
from kdcompress.networks.split import fresh_network
from kdcompress.networks.tapped import ALL, Tapped
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.networks.weights import load_into
from kdcompress.recipe import NetworkSection, TeacherSection
from kdcompress.tasks import CLASSIFICATION, EMBEDDING

MODEL = "cifar/resnet8"
BACKBONE = ALL - LOGITS
MORE = {"cifar/resnet18": 32, "torchvision/convnext_tiny": 32}


def backbone(model=MODEL, side=16, channels=3, seed=0):
    torch.manual_seed(seed)
    network = build(model, num_classes=0, channels=channels, image_size=(side, side))
    randomise_batch_norm(network)
    return network


def tapped(model=MODEL, side=16, network=None, **taps):
    return Tapped(
        network or backbone(model, side), model, image_size=(side, side), channels=3, mean=(0.5,) * 3,
        std=(0.2,) * 3, taps=taps or None, task=EMBEDDING,
    )  # fmt: skip


def classifier(classes=7, seed=1):
    torch.manual_seed(seed)
    return build(MODEL, num_classes=classes, channels=3, image_size=(16, 16))


# ---------------------------------------------------------------- building


@pytest.mark.parametrize("model", [*SMALL, *MORE])
def test_a_backbone_gives_what_the_classifier_of_the_same_network_reads(model):
    if model in SMALL:
        whole = with_classifier(model)
    else:
        whole = Tapped(
            build(model, num_classes=5, channels=3, image_size=(32, 32)), model, image_size=(32, 32),
            channels=3, mean=(0.5,), std=(0.2,),
        )  # fmt: skip
    bare = build(model, num_classes=0, channels=3, image_size=whole.image_size)
    assert type(bare) is type(whole.network)
    keys = [k for k in whole.network.state_dict() if not k.startswith(f"{whole.taps.classifier.path}.")]
    assert list(bare.state_dict()) == keys
    load_into(bare, whole.network.state_dict(), source="w", allow_other_head=False, headless=True)
    whole.train_mode(False)
    with torch.no_grad():
        expected = whole(images_for(whole), POOLED).pooled
        got = bare.eval()(whole.normalise(images_for(whole)))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_timms_own_way_gives_the_same(name):
    pytest.importorskip("timm")
    side = 224 if "vit" in name else 64
    settings = {"image_size": (side, side), "channels": 3}
    whole = build(f"timm/{name}", num_classes=3, **settings)
    randomise_batch_norm(whole)
    read = Tapped(whole, f"timm/{name}", mean=(0.5,), std=(0.2,), **settings)
    bare = build(f"timm/{name}", num_classes=0, **settings)
    result = load_into(bare, whole.state_dict(), source="w", allow_other_head=False, headless=True)
    path = read.taps.classifier.path
    assert set(result.dropped) == {f"{path}.weight", f"{path}.bias"}
    images = images_for(read, 2)
    read.train_mode(False)
    with torch.no_grad():
        expected = read(images, POOLED).pooled
        got = Tapped(bare.eval(), f"timm/{name}", mean=(0.5,), std=(0.2,), task=EMBEDDING, **settings)(
            images, POOLED
        )
    torch.testing.assert_close(got.pooled, expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_ends_in_a_convolution_has_no_linear_classifier_to_leave_out():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Conv2d(4, 2, 1))
    with pytest.raises(
        NetworkError, match=r"x/y: cannot be built without its classifier, .* is a Conv2d and"
    ):
        without_classifier(network, "x/y")


def test_the_hidden_layers_in_front_of_the_last_one_stay():
    with torch.device("meta"):
        network = build("torchvision/vgg11", num_classes=0, channels=3, image_size=(32, 32))
    assert [type(m).__name__ for m in network.classifier][3:] == ["Linear", "ReLU", "Dropout", "Identity"]


def test_building_a_backbone_warns_of_nothing_and_its_stages_stay_a_chain():
    network = backbone(side=32).eval()
    map_BCHW = images = torch.rand(2, 3, 32, 32)
    for _, segment in segments(MODEL, network):
        map_BCHW = segment(map_BCHW)
    torch.testing.assert_close(map_BCHW, network(images))


def test_a_network_of_the_users_is_asked_for_no_classes(tmp_path, monkeypatch):
    (tmp_path / "own_backbones.py").write_text(textwrap.dedent("""
        from torch import nn

        def features():
            return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8))

        def careless(num_classes):
            return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Head(num_classes))

        class Head(nn.Module):
            def __init__(self, classes):
                super().__init__()
                self.classes = classes

            def forward(self, x):
                return x[:, : self.classes]
    """))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model = "python:own_backbones:features"
    network = build(model, num_classes=0, channels=3, image_size=(8, 8), allow_code=True)
    read = tapped(model, 8, network)
    assert read.num_classes == 0
    assert read.taps.classifier is None
    assert read.shapes().pooled.shape == (2, 8)  # its last linear layer is part of the backbone
    model = "python:own_backbones:careless"
    network = build(model, num_classes=0, channels=3, image_size=(8, 8), allow_code=True)
    with pytest.raises(
        NetworkError, match=r"returns \[2, 0\]; where it is built for 0 classes it must leave"
    ):
        tapped(model, 8, network)
    sys.modules.pop("own_backbones")


# ---------------------------------------------------------------- reading


def test_a_tapped_backbone_reads_its_output_as_pooled_features_and_has_no_logits():
    read = tapped()
    assert (read.num_classes, read.taps.classifier) == (0, None)
    images = images_for(read)
    read.train_mode(False)
    got = read(images, BACKBONE)
    assert got.logits is None
    assert torch.equal(got.pooled, read.network(read.normalise(images)))
    assert torch.equal(read(images, POOLED).pooled, got.pooled)
    whole = with_classifier(MODEL)
    assert list(got.stages) == list(got.pre) == list(whole.taps.stages)
    shapes = read.shapes()
    assert shapes.logits is None
    assert shapes.pooled.shape == (2, 64)
    assert {k: v.shape for k, v in shapes.stages.items()} == {
        k: (2, *v.shape[1:]) for k, v in got.stages.items()
    }
    read.precision = torch.bfloat16
    assert read(images, POOLED).pooled.dtype == read(images, BACKBONE).pooled.dtype == torch.float32
    assert 0 < (read(images, POOLED).pooled - got.pooled).abs().max() < 0.1


def test_asking_a_backbone_for_logits_is_a_bug_and_for_its_classifier_an_error():
    read = tapped()
    for want in (LOGITS, ALL):
        with pytest.raises(AssertionError, match=r"resnet8 is a backbone: it has no logits"):
            read(images_for(read), want)
    with pytest.raises(NetworkError, match="is a backbone here, built without its classifier"):
        read.classify(torch.zeros(2, 64))
    with pytest.raises(NetworkError, match=r"taps.classifier: is a backbone here"):
        tapped(classifier="fc")


def test_gradients_and_other_tensors_reach_a_backbone():
    read = tapped()
    images = images_for(read)
    read(images, POOLED).pooled.square().sum().backward()
    assert all(p.grad is not None for p in read.network.parameters())
    doubled = {k: 2 * v for k, v in read.network.named_parameters() if k == "conv1.weight"}
    read.train_mode(False)
    got = read.functional(doubled, images, POOLED).pooled
    assert not torch.allclose(got, read(images, POOLED).pooled)


def test_a_backbone_read_again_or_drawn_anew_is_a_backbone():
    read = tapped(side=32)
    for other in (read.at((16, 16)), read.with_network(backbone(side=32, seed=5))):
        assert not other.task.has_classes
        assert other.num_classes == 0
    assert list(fresh_network(read).state_dict()) == list(read.network.state_dict())


@pytest.mark.parametrize("model", ["cifar/resnet8", "torchvision/mobilenet_v3_small"])
def test_a_teacher_may_be_a_backbone(model):
    read = tapped(model, 32)
    teacher = FrozenTeacher(read)
    assert not teacher.task.has_classes
    assert teacher.num_classes == 0
    assert teacher.folded > 0
    read.train_mode(False)
    images = images_for(read)
    got, expected = teacher(images, BACKBONE), read(images, BACKBONE)
    torch.testing.assert_close(got.pooled, expected.pooled, rtol=1e-3, atol=1e-4)
    assert not got.pooled.requires_grad
    assert teacher.shapes().pooled.shape == read.shapes().pooled.shape
    teacher.assert_unchanged()


def test_a_backbone_that_folding_would_change_is_left_unfolded(monkeypatch):
    monkeypatch.setattr(
        "kdcompress.networks.teacher.foldable", lambda _: [("layer1.0.conv1", "layer1.0.bn2")]
    )
    assert FrozenTeacher(tapped()).folded == 0


# ---------------------------------------------------------------- weights


def test_a_classifier_in_the_weights_is_left_out_and_said():
    network, whole = backbone(), classifier(7)
    result = load_into(network, whole.state_dict(), source="w", allow_other_head=False, headless=True)
    assert (result.num_classes_in_weights, result.head_replaced) == (7, False)
    assert result.dropped == ("fc.weight", "fc.bias")
    assert torch.equal(network.conv1.weight, whole.conv1.weight)


def test_weights_of_a_backbone_fill_a_backbone_strictly():
    network, other = backbone(), backbone(seed=1)
    result = load_into(network, other.state_dict(), source="w", allow_other_head=False, headless=True)
    assert (result.num_classes_in_weights, result.head_replaced, result.dropped) == (None, False, ())
    state = other.state_dict()
    del state["bn1.weight"]
    with pytest.raises(WeightsError, match=r"missing: bn1\.weight"):
        load_into(network, state, source="w", allow_other_head=False, headless=True)
    state = {**other.state_dict(), "extra.weight": torch.ones(3, 3), "bn9.weight": torch.ones(3)}
    with pytest.raises(WeightsError, match=r"unexpected: extra\.weight, bn9\.weight"):
        load_into(network, state, source="w", allow_other_head=False, headless=True)


def pretrained(kind):
    """(tensors as the checkpoint has them, which are no part of the backbone once it is taken out)."""
    own = {k: v for k, v in backbone(seed=3).state_dict().items()}
    mlp = {"fc.0.weight": torch.ones(64, 64), "fc.0.bias": torch.ones(64), "fc.2.weight": torch.ones(8, 64)}
    match kind:
        case "moco_v1":
            head = {"fc.weight": torch.ones(128, 64), "fc.bias": torch.ones(128)}
            twins = {f"{e}.{k}": v for e in ("encoder_q", "encoder_k") for k, v in {**own, **head}.items()}
            return {**twins, "queue": torch.ones(128, 9), "queue_ptr": torch.zeros(1)}, list(head)
        case "moco_v2":
            twins = {f"{e}.{k}": v for e in ("encoder_q", "encoder_k") for k, v in {**own, **mlp}.items()}
            return {**twins, "queue": torch.ones(8, 9), "queue_ptr": torch.zeros(1)}, list(mlp)
        case "moco_v2_query_alone":
            return {f"encoder_q.{k}": v for k, v in {**own, **mlp}.items()}, list(mlp)
        case "simclr":
            return {**own, **mlp}, list(mlp)
        case "swav":
            more = {"projection_head.0.weight": torch.ones(64, 64), "prototypes.weight": torch.ones(30, 64)}
            return {**own, **more}, list(more)
        case "dino":
            head = {"head.mlp.0.weight": torch.ones(9, 64), "head.last_layer.weight_g": torch.ones(5, 1)}
            return {**{f"backbone.{k}": v for k, v in own.items()}, **head}, []
        case "dino_both":
            state, _ = pretrained("dino")
            other = {k: v + 1 for k, v in state.items()}
            return {**prefixed("teacher.", state), **prefixed("student.", other)}, []
        case "barlow_twins":
            more = {"projector.0.weight": torch.ones(9, 64), "bn.running_mean": torch.ones(9)}
            return {**prefixed("backbone.", own), **more}, []
    raise AssertionError(kind)


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


KINDS = ["moco_v1", "moco_v2", "moco_v2_query_alone", "simclr", "swav", "dino", "dino_both", "barlow_twins"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_of_a_self_supervised_checkpoint_is_taken_and_its_heads_are_left_out(kind):
    state, dropped = pretrained(kind)
    network = backbone()
    result = load_into(network, state, source="w", allow_other_head=False, headless=True)
    expected = backbone(seed=3).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())
    assert sorted(result.dropped) == sorted(dropped)
    assert weights.classifier_classes(state, classifier(7)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_self_supervised_checkpoint_starts_a_classifier_where_a_fresh_head_is_welcome(kind):
    state, _ = pretrained(kind)
    network = classifier(128)  # as many classes as MoCo's head has dimensions
    own_head = network.fc.weight.clone()
    result = load_into(network, state, source="w", allow_other_head=True)
    assert (result.num_classes_in_weights, result.head_replaced) == (None, True)
    assert torch.equal(network.fc.weight, own_head)
    assert torch.equal(network.conv1.weight, backbone(seed=3).conv1.weight)
    with pytest.raises(WeightsError, match="no classifier, the network has 128"):
        load_into(classifier(128), state, source="w", allow_other_head=False)


def test_a_part_with_strangers_beside_it_is_not_taken_out():
    state = {**prefixed("backbone.", backbone().state_dict()), "classifier.0.weight": torch.ones(2, 2)}
    with pytest.raises(WeightsError, match=r"unexpected: backbone\.conv1\.weight"):
        load_into(backbone(), state, source="w", allow_other_head=False, headless=True)


def test_a_norm_where_the_network_has_none_is_no_head():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity())
    state = {**network.state_dict(), "1.weight": torch.ones(4), "1.bias": torch.ones(4)}
    with pytest.raises(WeightsError, match=r"unexpected: 1\.weight, 1\.bias"):
        load_into(network, state, source="w", allow_other_head=False, headless=True)


def test_dinos_checkpoint_gives_its_teacher(tmp_path):
    student, teacher = backbone(seed=1).state_dict(), backbone(seed=2).state_dict()
    content = {"student": prefixed("module.backbone.", student), "teacher": prefixed("backbone.", teacher)}
    torch.save({**content, "dino_loss": {"center": torch.zeros(1, 8)}, "epoch": 3}, tmp_path / "dino.pth")
    network = backbone()
    state = read_state_dict(tmp_path / "dino.pth")
    load_into(network, state, source="w", allow_other_head=False, headless=True)
    assert torch.equal(network.conv1.weight, teacher["conv1.weight"])
    torch.save(content, tmp_path / "other.pth")  # whose student is what was distilled
    state = read_state_dict(tmp_path / "other.pth")
    load_into(network, state, source="w", allow_other_head=False, headless=True)
    assert torch.equal(network.conv1.weight, student["conv1.weight"])


# ---------------------------------------------------------------- from a recipe


def started(path=None, headless="never", **settings):
    section = NetworkSection(model=MODEL, weights=None if path is None else str(path))
    settings = {"num_classes": 7, "channels": 3, "image_size": (16, 16), "seed": 0, **settings}
    return load_network(section, purpose="teacher", allow_code=False, headless=headless, **settings)


def saved(path, state):
    torch.save({"state_dict": state}, path)
    return path


def test_a_start_may_be_headless_in_any_case_with_or_without_weights(tmp_path):
    fresh = started(headless="always")
    assert not fresh.task.has_classes
    assert fresh.network.state_dict().keys() == backbone().state_dict().keys()
    assert torch.equal(fresh.network.conv1.weight, started(headless="always").network.conv1.weight)
    found = started(saved(tmp_path / "w.pth", classifier(5).state_dict()), "always")
    assert (found.num_classes, found.head_replaced) == (0, False)
    assert found.dropped == ("fc.weight", "fc.bias")


def test_a_start_is_headless_where_its_weights_are(tmp_path):
    ssl = saved(tmp_path / "moco.pth", prefixed("module.", pretrained("moco_v2")[0]))
    found = started(ssl, "if_weights_are", keep_classes=True)
    assert not found.task.has_classes
    assert torch.equal(found.network.conv1.weight, backbone(seed=3).conv1.weight)
    whole = saved(tmp_path / "whole.pth", classifier(7).state_dict())
    assert started(whole, "if_weights_are").num_classes == 7
    assert started(headless="if_weights_are").num_classes == 7
    # Classes of other data are no use to anybody, and with train: never none are trained in their place.
    other = saved(tmp_path / "other.pth", classifier(5).state_dict())
    assert started(other, "if_weights_are").num_classes == 7
    assert started(other, "if_weights_are").head_replaced
    assert started(other, "unless_classes_fit").num_classes == 7
    assert not started(other, "unless_classes_fit", keep_classes=True).task.has_classes
    for headless in ("never", "if_weights_are"):
        with pytest.raises(UserError, match="knows 5 classes, the data has 7"):
            started(other, headless, keep_classes=True)
    with pytest.raises(WeightsError, match="no classifier"):
        started(ssl, "never", keep_classes=True)


def test_a_headless_teacher_is_one_whose_logits_nobody_reads_and_needs_no_training(tmp_path):
    for train, logits_read, backbone_method, expected in (
        ("auto", False, True, "unless_classes_fit"), ("never", False, True, "unless_classes_fit"),
        ("always", False, True, "never"), ("auto", False, False, "if_weights_are"),
        ("never", False, False, "if_weights_are"), ("auto", True, False, "never"),
    ):  # fmt: skip
        section = TeacherSection(model=MODEL, train=train, weights="w.pth")
        assert (
            headless_teacher(
                section, logits_read=logits_read, task=EMBEDDING if backbone_method else CLASSIFICATION
            )
            == expected
        )
    ssl = saved(tmp_path / "ssl.pth", backbone(seed=3).state_dict())
    section = TeacherSection(model=MODEL, weights=str(ssl))
    assert not teacher_needs_training(section, started(ssl, "if_weights_are"))
    assert teacher_needs_training(section, started(ssl, "never"))
