"""The student of a checkpoint is found by its keys and shapes, or the user is told what stands where."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from kdcompress.errors import NonFiniteWeights, WeightsError
from kdcompress.networks.build import build
from kdcompress.networks.expected_keys import Pattern
from kdcompress.networks.foreign import find_student
from kdcompress.networks.read_checkpoint import UnreadSetting, read_checkpoint, read_state_dict

MODEL = "cifar/resnet8"


@pytest.fixture(scope="module")
def pattern():
    return Pattern(MODEL, image_size=(8, 8))


def network(classes=4, model=MODEL, channels=3, seed=0):
    torch.manual_seed(seed)
    return build(model, num_classes=classes, channels=channels, image_size=(8, 8))


def state(seed=0, **options):
    return dict(network(seed=seed, **options).state_dict())


def prefixed(prefix, tensors):
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def two(one, tensors, other, others):
    return {**prefixed(one, tensors), **prefixed(other, others)}


def shifted(tensors, by=1):
    return {key: tensor + by for key, tensor in tensors.items()}


HEADS = {
    "aux1.fc.weight": torch.ones(4, 16),
    "aux1.fc.bias": torch.ones(4),
    "projector.0.weight": torch.ones(8, 8),
}
TEACHER = state(seed=5, model="cifar/wrn-16-1")
TWIN = state(seed=6)
"""A teacher or a peer of the student's own architecture."""


class Distiller(nn.Module):
    """The way of codes that register everything in one module."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = network(), network(model="cifar/wrn-16-1", seed=5)
        self.connectors = nn.ModuleList([nn.Conv2d(16, 16, 1), nn.Conv2d(32, 32, 1)])


def in_distiller():
    return nn.DataParallel(Distiller()).state_dict()


def momenta(tensors):
    return {
        "state": {i: {"momentum_buffer": t} for i, t in enumerate(tensors.values())},
        "param_groups": [{"lr": 0.1}],
    }


LAYOUTS = {
    ".": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "arch": "resnet"},
    "model": lambda s: {"epoch": 240, "model": s, "best_acc": torch.tensor(71.0), "optimizer": momenta(s)},
    "module.": lambda s: prefixed("module.", s),
    "net:module.": lambda s: {"net": prefixed("module._orig_mod.", s)},
    "model:student.": lambda s: {"model": two("_orig_mod.student.", s, "_orig_mod.teacher.", TEACHER)},
    "state_dict:model.": lambda s: {
        "state_dict": {**prefixed("model.", s), "loss.scale": torch.ones(1)}, "hyper_parameters": {"lr": 1}
    },
    "state_dict:backbone.": lambda s: {"state_dict": two("backbone.", s, "neck.", HEADS)},
    "checkpoint:model": lambda s: {"checkpoint": {"model": OrderedDict(s), "epoch": 1}},
    "student": lambda s: {"student": s, "teacher": TEACHER, "projector": HEADS},
    "networks:1": lambda s: {"networks": [TEACHER, s]},
    "state_dict ": lambda s: {"state_dict": {**s, **HEADS}},
    "model_s": lambda s: {"model_s": s, "model_t": TWIN},
    "model:module.student.": lambda s: {"model": two("module.student.", s, "module.teacher.", TWIN)},
}  # fmt: skip


@pytest.mark.parametrize("at", LAYOUTS)
def test_the_student_is_found_where_research_codes_save_it(pattern, at):
    expected = state()
    found = find_student(LAYOUTS[at](expected), pattern, source="a.pth")
    assert found.at == at.strip()
    assert list(found.state) == list(expected)
    assert all(torch.equal(found.state[key], expected[key]) for key in expected)
    assert (found.num_classes, found.channels) == (4, 3)


def test_a_compiled_block_in_the_middle_is_no_other_network(pattern):
    saved = {key.replace("layer1.0.", "layer1.0._orig_mod."): value for key, value in state().items()}
    assert list(find_student(saved, pattern, source="a.pth").state) == list(state())


def test_an_average_of_a_wrapped_network_is_found(pattern):
    average = AveragedModel(network())
    found = find_student(average.state_dict(), pattern, source="a.pth")
    assert found.at == "module."
    assert found.remainder.values == ("n_averaged",)


@pytest.mark.parametrize(("classes", "channels"), [(1, 1), (7, 3), (1000, 1)])
def test_classes_and_channels_are_read_from_the_tensors(pattern, classes, channels):
    found = find_student(state(classes=classes, channels=channels), pattern, source="a.pth")
    assert (found.num_classes, found.channels) == (classes, channels)


OWN = """
from torch import nn

def convolutional(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2 * num_classes, 1))

def fixed():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 7))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Networks of the user's own, as `python:own_networks:…`."""
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)


@pytest.mark.usefixtures("own")
def test_whatever_follows_the_classes_tells_them():
    pattern = Pattern("python:own_networks:convolutional", image_size=(8, 8), allow_code=True)
    saved = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 18, 1)).state_dict()
    assert find_student(saved, pattern, source="a.pth").num_classes == 9
    odd = {**saved, "2.weight": torch.ones(17, 4, 1, 1)}
    with pytest.raises(WeightsError, match=r"of another shape: 2.weight \(17, 4, 1, 1\) for \(18, 4, 1, 1\)"):
        find_student(odd, pattern, source="a.pth")


@pytest.mark.usefixtures("own")
def test_a_network_of_fixed_classes_is_found_without_them():
    pattern = Pattern("python:own_networks:fixed", image_size=(8, 8), allow_code=True)
    saved = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 7)).state_dict()
    found = find_student(prefixed("module.", saved), pattern, source="a.pth")
    assert (found.at, found.num_classes, found.channels) == ("module.", None, None)


# ---- what is left behind


def test_what_is_dropped_is_told_by_module_with_its_parameters(pattern):
    saved = {
        "model": in_distiller(),
        "optimizer": momenta(state()),
        "epoch": 1,
        "best_acc": torch.tensor(7.0),
    }
    left = find_student(saved, pattern, source="a.pth").remainder
    told = {part.at: (part.tensors, part.parameters) for part in left.dropped}
    teacher = network(model="cifar/wrn-16-1")
    assert told == {
        "model:module.teacher": (len(TEACHER), sum(p.numel() for p in teacher.parameters())),
        "model:module.connectors": (4, 16 * 17 + 32 * 33),
        "optimizer": (len(state()), sum(t.numel() for t in state().values())),
    }
    assert left.values == ("epoch", "best_acc")


def test_heads_beside_the_students_own_layers_are_dropped(pattern):
    left = find_student(
        {"state_dict": {**prefixed("module.", {**state(), **HEADS})}}, pattern, source="a.pth"
    ).remainder
    assert {part.at: part.parameters for part in left.dropped} == {
        "state_dict:module.aux1": 4 * 17,
        "state_dict:module.projector": 64,
    }


# ---- several


def test_equal_tensors_in_several_places_are_one_network(pattern):
    again = {key: value.clone() for key, value in state().items()}
    again["bn1.num_batches_tracked"] += 5  # an average may count otherwise, and computes the same
    found = find_student({"model": state(), "model_ema": again}, pattern, source="a.pth")
    assert (found.at, found.also_at) == ("model", ("model_ema",))


def test_raw_and_averaged_weights_are_refused_with_where_they_stand(pattern):
    saved = {"state_dict": state(), "state_dict_ema": shifted(state()), "copy": shifted(state())}
    with pytest.raises(WeightsError) as caught:
        find_student(saved, pattern, source="a.pth")
    assert str(caught.value) == (
        "a.pth: 2 different networks in it fit a cifar/resnet8; choose one:\n"
        "  --at state_dict  (4 classes)\n"
        "  --at state_dict_ema  (4 classes; the same again at copy)"
    )
    found = find_student(saved, pattern, source="a.pth", at="state_dict_ema")
    assert torch.equal(found.state["fc.bias"], state()["fc.bias"] + 1)


def test_more_copies_than_can_be_compared_ask_for_one_by_name(pattern):
    content = {f"epoch{number}": state(seed=number) for number in range(65)}
    with pytest.raises(WeightsError, match=r"stands in 65 places of it, such as epoch0; name one with --at"):
        find_student(content, pattern, source="a.pth")
    assert find_student(content, pattern, source="a.pth", at="epoch64").at == "epoch64"


def test_the_other_names_under_a_prefix_are_those_of_its_own_module(pattern):
    beside = {"student.aux": torch.ones(2), "student/aux": torch.ones(2), "students.aux": torch.ones(2)}
    found = find_student({**prefixed("student.", state()), **beside}, pattern, source="a.pth")
    assert sorted(part.at for part in found.remainder.dropped) == ["student.aux", "student/aux", "students"]


@pytest.mark.parametrize(
    "saved",
    [
        {"student": state(), "student_ema": TWIN},
        {"model_1": state(), "model_2": TWIN},
        {"model": state(), "teacher": TWIN},
        {"models": [state(), TWIN]},
        {**prefixed("peers.0.", state()), **prefixed("peers.1.", TWIN)},
        {"student": state(), "teacher": TWIN, "ema": shifted(state())},
    ],
    ids=lambda saved: "+".join(list(saved)[:2]),
)
def test_no_name_but_student_beside_teacher_decides_between_different_networks(pattern, saved):
    with pytest.raises(WeightsError, match="2 different networks in it fit a cifar/resnet8; choose one"):
        find_student(saved, pattern, source="a.pth")


def test_what_is_named_a_teacher_steps_back_behind_what_is_named_a_student(pattern):
    found = find_student({"teacher": TWIN, "student": state()}, pattern, source="a.pth")
    assert (found.at, found.set_aside) == ("student", ("teacher",))
    # Unless it is asked for.
    found = find_student({"teacher": TWIN, "student": state()}, pattern, source="a.pth", at="teacher")
    assert torch.equal(found.state["fc.weight"], TWIN["fc.weight"])
    # Alone it is what there is: a teacher may be stripped too.
    assert find_student({"teacher": TWIN}, pattern, source="a.pth").at == "teacher"


def test_averages_without_statistics_are_not_passed_over(pattern):
    shadow = {
        key: value for key, value in shifted(state()).items() if "running" not in key and "num_" not in key
    }
    saved = {"net": state(), "ema": {"decay": 0.99, "shadow": shadow}}
    with pytest.raises(WeightsError) as caught:
        find_student(saved, pattern, source="a.pth")
    last = "  --at ema:shadow  (4 classes; without batch norm's statistics, so it cannot be taken)"
    assert str(caught.value).splitlines()[1:] == ["  --at net  (4 classes)", last]
    assert find_student(saved, pattern, source="a.pth", at="net").at == "net"
    with pytest.raises(WeightsError, match=r"missing: bn1.running_mean, bn1.running_var, "):
        find_student(saved, pattern, source="a.pth", at="ema:shadow")


@pytest.mark.parametrize(
    "at", ["model_ema:module.", "model_ema:module", "model_ema", "model_ema:module._orig_mod."]
)
def test_a_place_may_be_said_short(pattern, at):
    saved = {"model": prefixed("module.", TWIN), "model_ema": prefixed("module._orig_mod.", state())}
    assert find_student(saved, pattern, source="a.pth", at=at).at == "model_ema:module."


def test_a_place_that_is_not_there_lists_those_that_are(pattern):
    with pytest.raises(WeightsError, match=r"--at emma: nothing of it stands there; did you mean 'ema'\?"):
        find_student({"model": state(), "ema": TWIN}, pattern, source="a.pth", at="emma")


# ---- a part of something larger


def test_a_larger_network_of_the_same_family_is_not_cut_down(pattern):
    with pytest.raises(WeightsError) as caught:
        find_student({"model": state(model="cifar/resnet14")}, pattern, source="a.pth")
    assert str(caught.value) == (
        "a.pth: at model stands a whole cifar/resnet8, but with more among its layers "
        "(layer1.1.conv1.weight, layer1.1.bn1.weight, layer1.1.bn1.bias, and 33 more), as in a larger "
        "network; name that one with --student or, if only training used them, leave them out with "
        "--drop layer1.1"
    )


def test_a_teacher_that_contains_the_student_is_no_candidate(pattern):
    saved = {"model": state(), "old": state(model="cifar/resnet14", seed=3)}
    assert find_student(saved, pattern, source="a.pth").at == "model"


def test_heads_among_the_students_layers_are_left_out_when_the_user_says_so(pattern):
    saved = {
        "model": {**state(), "layer1.exit.weight": torch.ones(4, 16), "layer2.exit.weight": torch.ones(4, 32)}
    }
    with pytest.raises(WeightsError, match=r"with --drop layer1\.exit$"):
        find_student(saved, pattern, source="a.pth")
    with pytest.raises(WeightsError, match=r"\(layer2\.exit\.weight\), as in a larger network"):
        find_student(saved, pattern, source="a.pth", drop=["layer1.exit"])
    found = find_student(saved, pattern, source="a.pth", drop=["layer1.exit", "layer2.exit"])
    assert [(part.at, part.parameters) for part in found.remainder.dropped] == [
        ("model:layer1.exit", 64), ("model:layer2.exit", 128),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("layer1", "--drop layer1: holds tensors of the cifar/resnet8 itself"),
        ("layer1.exits", r"--drop layer1.exits: there is none at \.; did you mean 'layer1.exit'\?"),
    ],
)
def test_what_is_dropped_must_be_there_and_not_the_students(pattern, drop, message):
    saved = {**state(), "layer1.exit.weight": torch.ones(4, 16)}
    with pytest.raises(WeightsError, match=message):
        find_student(saved, pattern, source="a.pth", drop=["layer1.exit", drop])


# ---- near misses


def test_the_nearest_miss_is_explained(pattern):
    broken = {key: value for key, value in state().items() if key != "bn1.weight"}
    broken["layer1.0.conv1.weight"] = torch.zeros(8, 16, 3, 3)
    broken["fc.bias"] = torch.zeros(9)
    broken["fc.weight"] = broken["fc.weight"].to(torch.int8)
    broken["extra"] = torch.zeros(2)
    with pytest.raises(WeightsError) as caught:
        find_student({"state_dict": prefixed("module.", broken), "teacher": TEACHER}, pattern, source="a.pth")
    assert str(caught.value) == (
        "a.pth: no whole cifar/resnet8 stands in it; the nearest is at state_dict:module., where 52 of its "
        "56 tensors fit\n"
        "  missing: bn1.weight\n"
        "  of another shape: layer1.0.conv1.weight (8, 16, 3, 3) for (16, 16, 3, 3), fc.weight int8 for "
        "float32, fc.bias (9,) for (4,)\n"
        "  unexpected: extra"
    )


def test_a_network_made_for_images_of_another_size_says_so():
    pytest.importorskip("timm")
    model = "timm/vit_tiny_patch16_224"
    saved = build(model, num_classes=3, channels=3, image_size=(32, 32)).state_dict()
    with pytest.raises(WeightsError) as caught:
        find_student(saved, Pattern(model, image_size=(64, 64)), source="a.pth")
    assert str(caught.value).splitlines()[1:] == [
        "  of another shape: pos_embed (1, 5, 192) for (1, 17, 192)",
        "  if these follow the size of its images, say that with --input-size",
    ]
    assert find_student(saved, Pattern(model, image_size=(32, 32)), source="a.pth").at == "."


def test_a_checkpoint_of_another_family_says_what_is_in_it(pattern):
    with pytest.raises(
        WeightsError, match=r"nothing of a cifar/resnet8 stands in it; most of its tensors are at \. "
    ):
        find_student({"features.0.weight": torch.ones(2)}, pattern, source="a.pth")


@pytest.mark.parametrize("content", [{}, [], {"epoch": 1}, 3, {"a": {"b": [1, 2]}}], ids=str)
def test_a_checkpoint_without_a_tensor_is_named(pattern, content):
    with pytest.raises(WeightsError, match=r"a.pth: holds no tensor"):
        find_student(content, pattern, source="a.pth")


def test_weights_that_are_not_finite_are_refused(pattern):
    broken = state()
    broken["fc.bias"][0] = torch.inf
    with pytest.raises(NonFiniteWeights, match=r"'module.fc.bias' holds values that are not finite"):
        find_student(prefixed("module.", broken), pattern, source="a.pth")


@pytest.mark.parametrize(("dtype", "value"), [(torch.float64, 1e300), (torch.float8_e4m3fn, torch.nan)])
def test_weights_that_float32_cannot_hold_are_refused(pattern, dtype, value):
    wide = {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state().items()
    }
    assert find_student(wide, pattern, source="a.pth").state["fc.bias"].dtype == dtype
    wide["fc.bias"] = torch.full_like(state()["fc.bias"], value, dtype=torch.float64).to(dtype)
    with pytest.raises(NonFiniteWeights, match=r"'fc.bias' holds values that are not finite in float32"):
        find_student(wide, pattern, source="a.pth")


def test_a_sparse_tensor_is_named_by_its_layout(pattern):
    with pytest.raises(WeightsError, match=r"fc.weight sparse_coo for float32"):
        find_student({**state(), "fc.weight": state()["fc.weight"].to_sparse()}, pattern, source="a.pth")


def test_tensors_beside_the_way_to_the_student_are_told_by_their_names(pattern):
    saved = {"model": state(), "rng": torch.get_rng_state(), "cuda": [torch.get_rng_state()]}
    assert [part.at for part in find_student(saved, pattern, source="a.pth").remainder.dropped] == [
        "rng",
        "cuda",
    ]


def test_checkpoints_from_before_batch_counters_are_whole(pattern):
    old = {key: value for key, value in state().items() if not key.endswith("num_batches_tracked")}
    assert find_student(old, pattern, source="a.pth").state.keys() == old.keys()


def test_looking_draws_no_random_numbers():
    before = torch.get_rng_state()
    Pattern(MODEL, image_size=(8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoint_that_holds_itself_ends(pattern):
    saved = {"model": state()}
    saved["self"] = saved
    assert find_student(saved, pattern, source="a.pth").at == "model"


# ---- reading


@pytest.mark.parametrize("legacy", [False, True])
def test_settings_beside_the_tensors_are_neither_read_nor_run(tmp_path, legacy):
    settings = argparse.Namespace(lr=0.1, out=pathlib.Path("x"), best=np.float64(3), seen=np.arange(3))
    saved = {"model": {"a": torch.ones(2)}, "opt": settings, "best_acc": np.float32(71)}
    torch.save(saved, tmp_path / "last", _use_new_zipfile_serialization=not legacy)
    content = read_checkpoint(tmp_path / "last")
    assert torch.equal(content["model"]["a"], torch.ones(2))
    assert isinstance(content["opt"], UnreadSetting)
    assert isinstance(content["best_acc"], UnreadSetting)
    assert not vars(content["opt"])


class Code:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_beside_the_tensors_is_refused_and_not_run(tmp_path):
    settings = argparse.Namespace(code=Code(tmp_path / "ran"))
    torch.save({"model": {"a": torch.ones(2)}, "opt": settings}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"\(posix.mkdir\) beside tensors, so it was refused and nothing"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_what_is_allowed_here_is_allowed_nowhere_else(tmp_path):
    torch.save({"model": {"a": torch.ones(2)}, "opt": argparse.Namespace()}, tmp_path / "a.pth")
    read_checkpoint(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"argparse.Namespace"):
        read_state_dict(tmp_path / "a.pth")
