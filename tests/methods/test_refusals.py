"""What a method cannot be used on is refused when it is built, before a run writes or trains anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from pydantic import ValidationError
from several_pairs import OFFLINE
from small_training import CLASSES
from torch import nn

from kdcompress.cli import main
from kdcompress.data.batch import DataInfo
from kdcompress.errors import DataError, NetworkError, Uncuttable
from kdcompress.methods.base import find_method
from kdcompress.networks.build import build
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import FrozenTeacher

SIDE = 16
MAPS = {"stages", "pre"}


class Flat(nn.Sequential):
    """No map anywhere."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))


class TwoClassifiers(nn.Module):
    """Maps, but no linear layer whose output is the logits."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
        self.one, self.other = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)

    def forward(self, x):
        pooled = self.layer(x).mean((2, 3))
        return self.one(pooled) + self.other(pooled)


OWN = {"python:mine:Flat": Flat, "python:mine:TwoClassifiers": TwoClassifiers}


def network(model, side=SIDE, **taps):
    made = (
        OWN[model]()
        if model in OWN
        else build(model, num_classes=CLASSES, channels=3, image_size=(side, side))
    )
    return Tapped(
        made, model, image_size=(side, side), channels=3, mean=(0.5,), std=(0.2,), taps=taps or None
    )


def method(name, student, teacher, labels=(0, 1, 2, 3), **config):
    """The method, built on networks that are no fakes."""
    cls = find_method(name)
    config = cls.Config(**{**classifying(cls), **config})
    info = DataInfo(CLASSES, torch.tensor(labels), student.image_size, 3)
    return cls(config, Networks(student, FrozenTeacher(teacher)), info)


def classifying(cls):
    """Settings with which a method that could make a backbone trains a classifier."""
    return {} if cls.needs(cls.Config()).task.has_classes else {"ce_weight": 1.0}


def reads(name, role):
    cls = find_method(name)
    needs = cls.needs(cls.Config(**classifying(cls)))
    return set(needs.student if role == "student" else needs.read_of_teacher)


# ---- networks that lack what is read of them; whichever methods there are


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_without_stages_is_refused_by_whatever_reads_stages(name, role):
    networks = {"student": network("cifar/resnet8"), "teacher": network("cifar/resnet14")}
    networks[role] = network("python:mine:Flat")
    if not reads(name, role) & MAPS:
        method(name, **networks)
        return
    with pytest.raises(NetworkError, match=rf"^method {name}: .*python:mine:Flat.* stages?\b"):
        method(name, **networks)


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_without_one_classifier_is_refused_by_whatever_reads_pooled_vectors(name, role):
    networks = {"student": network("cifar/resnet8"), "teacher": network("cifar/resnet14")}
    networks[role] = network("python:mine:TwoClassifiers")
    needs = find_method(name).needs(find_method(name).Config())
    if "pooled" not in reads(name, role):
        if not needs.cut:
            method(name, **networks)
        return
    with pytest.raises(
        NetworkError,
        match=rf"^method {name}: .*python:mine:TwoClassifiers.*{role}.taps.*classifier: MODULE",
    ):
        method(name, **networks)
    # What the message advises is a way out.
    networks[role] = network("python:mine:TwoClassifiers", stage1="layer", classifier="one")
    method(name, **networks)


# ---- stages that do not fit together


@pytest.mark.parametrize(
    ("name", "student", "teacher", "reason"),
    [
        # 4×4 against 16×16: no transposed convolution of stride 2 leads there.
        (
            "fitnet", {"stage1": "layer3"}, {"stage1": "layer1"},
            r"resnet8 \(stage1 64×4×4\) .* cifar/resnet14 \(stage1 16×16×16\): .* exactly half as large",
        ),
        (
            "ab", {"stage1": "layer3"}, {"stage1": "layer1", "stage2": "layer2"},
            r"resnet8 \(stage1 64×4×4\) is exactly as large .* \(stage1 16×16×16, stage2 32×8×8\); choose",
        ),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_matched_are_refused_with_both_networks_maps(name, student, teacher, reason):
    with pytest.raises(NetworkError, match=rf"^method {name}: .*{reason}"):
        method(name, network("cifar/resnet8", **student), network("cifar/resnet14", **teacher))
    # The same sizes the other way round can be matched where a map may be made smaller.
    if name == "fitnet":
        method(name, network("cifar/resnet8", **teacher), network("cifar/resnet14", **student))


def test_maps_of_single_pixels_have_no_attention():
    student = network("cifar/mobilenet-v2", stage1="conv2")
    assert student.shapes().stages["stage1"].shape[2:] == (1, 1)
    with pytest.raises(
        NetworkError, match=r"^method at: .*cifar/mobilenet-v2 \(stage1 1280×1×1\).*larger images"
    ):
        method("at", student, network("cifar/resnet14"))


@pytest.mark.parametrize("name", ["at", "sp", "reviewkd", "fitnet", "ab"])
def test_unequal_counts_of_stages_are_no_reason_to_refuse(name):
    student = network("cifar/mobilenet-v2", side=32)
    teacher = network("cifar/resnet14", side=32)
    assert len(student.shapes().stages) > len(teacher.shapes().stages)
    method(name, student, teacher)


# ---- networks that cannot be cut


def cut_within_a_block():
    return network("cifar/resnet8", stage1="layer1.0.conv1", stage2="layer2")


def buffer_outside_the_chain():
    student = network("cifar/resnet8")
    student.network.register_buffer("extra", torch.zeros(1))
    return student


def classifier_outside_the_chain():
    student = network("cifar/resnet8")
    student.shapes()  # measured with the real classifier and remembered
    student.network.extra = nn.Linear(64, CLASSES)
    student.taps = replace(student.taps, classifier=replace(student.taps.classifier, path="extra"))
    return student


def own_network():
    return network("python:mine:TwoClassifiers", stage1="layer.0", stage2="layer", classifier="one")


@pytest.mark.parametrize(
    ("student", "reason"),
    [
        (
            cut_within_a_block,
            r"cifar/resnet8: cannot be cut behind stage1 \(layer1.0.conv1\), .*; name another module in its",
        ),
        (buffer_outside_the_chain, "cifar/resnet8: extra lies outside its segments, .*;"),
        (classifier_outside_the_chain, "cifar/resnet8: its classifier does not lie in the branches;"),
        (own_network, "python:mine:TwoClassifiers: heads and branches .* not from your own;"),
    ],
    ids=["stage", "buffer", "classifier", "own"],
)
def test_an_online_methods_refusal_of_a_network_lists_those_that_can_be_cut(student, reason):
    names = r".*choose a method .*, or a network that can be cut: every cifar/ network; timm/.*; torchvision/"
    with pytest.raises(Uncuttable, match=reason + names):
        build_branches(student())


def build_branches(student):
    cls = find_method("mcl")
    info = DataInfo(CLASSES, torch.tensor((0, 1, 2, 3)), student.image_size, 3)
    return cls(cls.Config(branches=2, own_stages=1), Networks(student), info)


# ---- data


@pytest.mark.parametrize("labels", [(2, 2, 2, 2), (2, -1, 2, -1)])
@pytest.mark.parametrize(
    ("name", "way_out"),
    [("crd", "take data of at least two classes, or another method"), ("mlkd", "set method.sup_weight to 0")],
)
def test_contrast_between_classes_takes_two_of_them(name, way_out, labels):
    student, teacher = network("cifar/resnet8"), network("cifar/resnet14")
    with pytest.raises(DataError, match=rf"^method {name}: .*images are of 1; .*{way_out}"):
        method(name, student, teacher, labels)
    method(name, student, teacher, (2, 2, 2, 3))


def test_without_the_contrast_one_class_will_do():
    made = method("mlkd", network("cifar/resnet8"), network("cifar/resnet14"), (2, 2, 2, 2), sup_weight=0.0)
    assert made.projections.embed_student is None


# ---- through the command line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method={name: fitnet, guided: stage3, hint: stage1}"], "method fitnet: no regressor leads from"),
        (["method={name: fitnet, hint: stage7}"], "method.hint: no stage 'stage7'"),
        (
            ["method={name: ab}", "student.taps={stage1: layer3}", "teacher.taps={stage1: conv1}"],
            "method ab: signs are compared pixel by pixel",
        ),
        (["method={name: at}", "student.taps={stage1: avgpool}"], "method at: no stage of more than one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_run_refuses_before_it_writes_anything(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [part for setting in settings for part in ("--set", setting)]
    done = CliRunner().invoke(main, ["distill", "--recipe", "quickstart", *options])
    assert done.exit_code == 2, (done.stderr, done.exception)
    assert message in done.stderr
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("ffl", {"form": "networks", "branches": 4}, "branches and own_stages go with form: branches"),
        ("mfef", {"form": "networks", "own_stages": 2}, "branches and own_stages go with form: branches"),
        ("mcl", {"own_stages": 3}, "own_stages goes with branches of 2 or more"),
        ("mcl", {"negatives": 100}, "negatives, bank_momentum and bank_device go with form: memory"),
        ("lmcl", {"bank_device": "cpu"}, "negatives, bank_momentum and bank_device go with form: memory"),
        ("kdcl", {"linear_over": "image"}, "linear_over goes with target: linear"),
        ("kdcl", {"ridge": 0.1}, "ridge goes with target: general"),
    ],
)
def test_an_option_that_would_not_be_read_is_refused(name, config, message):
    with pytest.raises(ValidationError, match=message):
        find_method(name).Config(**config)
