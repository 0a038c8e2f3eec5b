from __future__ import annotations

import argparse
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kdcompress.errors import WeightsError
from kdcompress.networks.build import build
from kdcompress.networks.read_checkpoint import read_state_dict

MODEL = "cifar/resnet8"


def tiny(num_classes: int = 3) -> nn.Module:
    return build(MODEL, num_classes=num_classes, channels=1, image_size=(8, 8))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar", ".safetensors"])
def test_what_was_saved_is_read(tmp_path, suffix):
    state = tiny().state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    found = read_state_dict(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


STATE = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}
PREFIXED = {f"module.{key}": value for key, value in STATE.items()}


@pytest.mark.parametrize("saved", [
    {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {}}},
    {"model": STATE, "best_acc": torch.tensor(71.0)},
    {"model_state_dict": STATE},
    {"net": STATE, "acc": 93.0},
    {"student": STATE},
    {"state_dict": STATE, "ema": {key: value + 1 for key, value in STATE.items()}},
    {"state_dict_ema": {key: value + 1 for key, value in STATE.items()}, "state_dict": STATE},
    {"checkpoint": 1, "model": {"state_dict": STATE}},
    PREFIXED,
    {f"_orig_mod.{key}": value for key, value in STATE.items()},
    {f"module._orig_mod.model.{key}": value for key, value in STATE.items()},
    {"n_averaged": torch.tensor(3), **PREFIXED},
], ids=lambda saved: "+".join(list(saved)[:2]))  # fmt: skip
def test_usual_wrappers_and_prefixes_are_taken_off(tmp_path, saved):
    torch.save(saved, tmp_path / "weights.pt")
    assert_same(read_state_dict(tmp_path / "weights.pt"), STATE)


def test_a_prefix_that_only_some_keys_have_is_a_name_and_stays(tmp_path):
    state = {"model.weight": torch.ones(1), "head.weight": torch.ones(1)}
    torch.save(state, tmp_path / "weights.pt")
    assert_same(read_state_dict(tmp_path / "weights.pt"), state)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, legacy):
    trap = tmp_path / "ran"
    torch.save(
        {"state_dict": STATE, "evil": _Evil(trap)},
        tmp_path / "evil.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(WeightsError, match="refused and nothing in it was run; save the tensors alone"):
        read_state_dict(tmp_path / "evil.pt")
    assert not trap.exists()


def test_a_plain_pickle_with_code_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "ran"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Evil(trap)))
    with pytest.raises(WeightsError):
        read_state_dict(tmp_path / "evil.pth")
    assert not trap.exists()


def test_a_pickled_module_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(
        WeightsError, match=r"Python objects \(torch.nn.modules.linear.Linear\) beside tensors"
    ):
        read_state_dict(tmp_path / "module.pt")
    torch.save({"model": STATE, "opt": argparse.Namespace(lr=1)}, tmp_path / "options.pt")
    with pytest.raises(WeightsError, match=r"\(argparse.Namespace\)"):
        read_state_dict(tmp_path / "options.pt")


def test_a_scripted_module_is_refused(tmp_path):
    scripted = tmp_path / "scripted.pt"
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), scripted)
    with pytest.raises(WeightsError, match=r"scripted.pt: "):
        read_state_dict(scripted)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 5, 9, 100, 0.5, 0.99])
def test_truncated_files_are_one_sentence(tmp_path, suffix, keep):
    path = tmp_path / f"weights{suffix}"
    save_file(STATE, path) if suffix == ".safetensors" else torch.save(STATE, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(WeightsError, match=r"weights\.\w+: (is|holds)") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"\x00" * 300, b"<html>404</html>", b"PK\x03\x04rubbish", b"\x80\x02.", bytes(range(7, 256, 4))],
)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_files_that_are_no_checkpoint_are_one_sentence(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("saved", "held"), [
    (torch.ones(2), "a Tensor"),
    ([STATE], "a list"),
    ({}, "a dictionary of nothing"),
    ({"optimizer": {"state": {}}, "epoch": 1}, "a dictionary of 'optimizer', 'epoch'"),
])  # fmt: skip
def test_a_checkpoint_without_a_network_says_what_it_holds(tmp_path, saved, held):
    torch.save(saved, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=f"holds no state dictionary but {held}"):
        read_state_dict(tmp_path / "weights.pt")


def test_missing_files_folders_and_other_kinds_of_file_are_said(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        read_state_dict(tmp_path / "nowhere.pt")
    with pytest.raises(WeightsError, match="is a folder"):
        read_state_dict(tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"unknown kind of file; expected .safetensors, .pt or .pth"):
        read_state_dict(tmp_path / "weights.h5")


UNUSUAL = {
    "sparse_coo": lambda tensor: tensor.to_sparse(),
    "expanded (a few values that stand for many)": lambda tensor: tensor.flatten()[:1].expand(10**9),
    "meta (without values)": lambda tensor: tensor.to("meta"),
    "complex64": lambda tensor: tensor.to(torch.complex64),
    "uint16": lambda tensor: tensor.to(torch.uint16),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_a_tensor_that_no_network_can_take_over_is_named(tmp_path, kind):
    torch.save({**STATE, "fc.weight": UNUSUAL[kind](STATE["fc.weight"])}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match=r"'fc.weight' is a tensor of the kind " + re.escape(kind)):
        read_state_dict(tmp_path / "weights.pt")
