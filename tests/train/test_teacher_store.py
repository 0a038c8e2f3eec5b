from __future__ import annotations

import pytest
import torch
from torch import nn

from kdcompress.data.cache import cache_folder
from kdcompress.errors import RunFolderError
from kdcompress.recipe import load_recipe
from kdcompress.train import teacher_store

STATE = {"weight": torch.arange(6.0).reshape(3, 2), "bias": torch.zeros(3)}
SURROUNDINGS = {"torch": "1", "device": "cpu", "precision": "fp32", "processes": 1}


def key(*overrides, data="d", weights=None, **surroundings):
    recipe = load_recipe("quickstart", overrides)
    around = {**SURROUNDINGS, **surroundings}
    return teacher_store.key(recipe, listing_sha256=data, weights_sha256=weights, surroundings=around)


@pytest.mark.parametrize(
    "override",
    [
        "seed=3", "name=other", "student.model=cifar/resnet20", "method.temperature=2", "train.epochs=5",
        "train.ema=0.9", "train.ship=last", "teacher.min_top1=0", "bench.rounds=1", "data.workers=2",
        "export.formats=[onnx]",
    ],
)  # fmt: skip
def test_what_has_no_part_in_the_teacher_finds_the_same_teacher(override):
    assert key(override) == key()


@pytest.mark.parametrize(
    "override",
    [
        "teacher.model=cifar/wrn-16-1", "teacher.epochs=3", "teacher.seed=1", "teacher.lr=0.01",
        "data.batch_size=32", "data.held_out=0", "data.augment=none", "optim.lr=0.2",
        "optim.schedule=constant",
        "train.threads=2", "train.label_smoothing=0.1", "train.max_steps=3", "train.accumulate=2",
        "train.freeze_bn=true", "train.clip_norm=1",
    ],
)  # fmt: skip
def test_what_the_teacher_depends_on_asks_for_another_one(override):
    assert key(override) != key()


def test_so_do_its_data_its_weights_and_what_it_is_computed_on():
    others = [
        key(data="e"),
        key(weights="w"),
        key(precision="bf16"),
        key(processes=2),
        key(device="cuda"),
        key(channels=3),
    ]
    assert len({key(), *others}) == 7


def test_a_kept_teacher_is_found_by_this_run_and_by_every_other(tmp_path):
    teacher_store.keep(tmp_path / "run", "k", STATE, {"epoch": 3})
    for folder in (tmp_path / "run", tmp_path / "other"):
        kept = teacher_store.find(folder, "k")
        assert kept.note["epoch"] == 3
        assert all(torch.equal(kept.state[name], STATE[name]) for name in STATE)
    assert teacher_store.find(tmp_path / "run", "another") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "teacher.safetensors").write_bytes(b"short"),
        lambda folder: (folder / "teacher.safetensors").unlink(),
        lambda folder: (folder / "teacher.json").unlink(),
        lambda folder: (folder / "teacher.json").write_text('{"schema": "kdcompress.teacher/9", "key": "k"}'),
        lambda folder: (folder / "teacher.json").write_text('{"schema": "kdco'),
        lambda folder: (folder / "teacher.json").write_bytes(b"\xff\xfe"),
        lambda folder: (folder / "teacher.json").write_text("[]"),
        lambda folder: (folder / "teacher.json").write_text('{"schema": "kdcompress.teacher/1", "key": "k"}'),
    ],
    ids=["cut", "no_file", "no_note", "newer", "half_a_note", "no_text", "no_object", "no_hash"],
)
def test_a_damaged_teacher_is_as_good_as_none(tmp_path, damage):
    teacher_store.keep(tmp_path, "k", STATE, {})
    damage(tmp_path)
    damage(cache_folder() / "teachers" / "k")
    assert teacher_store.find(tmp_path, "k") is None


def test_a_damaged_teacher_of_the_run_is_replaced_by_the_shared_one(tmp_path):
    teacher_store.keep(tmp_path, "k", STATE, {})
    (tmp_path / "teacher.safetensors").write_bytes(b"short")
    assert teacher_store.find(tmp_path, "k") is not None


def test_a_teacher_fills_its_own_network_and_no_other():
    network = nn.Linear(2, 3)
    teacher_store.fill(network, STATE)
    assert torch.equal(network.weight, STATE["weight"])
    with pytest.raises(RunFolderError, match=r"does not fit its network .*--overwrite"):
        teacher_store.fill(nn.Linear(2, 4), STATE)


@pytest.mark.parametrize(("classes", "least"), [(2, 0.75), (4, 0.625), (10, 0.3), (1000, 0.003)])
def test_the_least_top1_is_three_times_chance_and_at_most_halfway_to_certainty(classes, least):
    assert teacher_store.least_top1(classes) == pytest.approx(least)
