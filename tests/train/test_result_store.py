from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from torch import nn

from kdcompress.data.cache import cache_folder
from kdcompress.errors import RunFolderError
from kdcompress.recipe import load_recipe
from kdcompress.train import result_store
from kdcompress.train.processes import Processes

STATE = {"weight": torch.arange(6.0).reshape(3, 2), "bias": torch.zeros(3)}
ENVIRONMENT = {"torch": "1", "device": "cpu", "precision": "fp32", "processes": 1}


def key(*overrides, data="d", weights=None, **environment):
    recipe = load_recipe("quickstart", overrides)
    around = {**ENVIRONMENT, **environment}
    return result_store.teacher_key(recipe, listing_sha256=data, weights_sha256=weights, environment=around)


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


def test_keys_from_before_an_option_are_those_of_its_default():
    _, train, _ = result_store.recipe_parts(load_recipe("quickstart"))
    assert "evaluate_every" not in train


def test_weights_count_by_their_content_and_not_by_how_they_are_named():
    named = key("teacher.weights=V1", f"teacher.sha256={'a' * 64}", weights="a" * 64)
    assert named == key("teacher.weights=file.pt", weights="a" * 64)


@pytest.mark.parametrize(
    "override",
    [
        "teacher.model=cifar/wrn-16-1", "teacher.epochs=3", "teacher.seed=1", "teacher.lr=0.01",
        "data.batch_size=32", "data.held_out=0", "data.augment=none", "optim.lr=0.2",
        "optim.schedule=constant",
        "train.threads=2", "train.label_smoothing=0.1", "train.max_steps=3", "train.accumulate=2",
        "train.freeze_bn=true", "train.clip_norm=1", "train.evaluate_every=2",
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
    result_store.keep(tmp_path / "run", "k", STATE, {"epoch": 3})
    for folder in (tmp_path / "run", tmp_path / "other"):
        kept = result_store.find(folder, "k")
        assert kept.note["epoch"] == 3
        assert all(torch.equal(kept.state[name], STATE[name]) for name in STATE)
    assert result_store.find(tmp_path / "run", "another") is None


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
    result_store.keep(tmp_path, "k", STATE, {})
    damage(tmp_path)
    damage(cache_folder() / "teachers" / "k")
    assert result_store.find(tmp_path, "k") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: _change_note(folder, epoch=4),
        lambda folder: _change_note(folder, more=1),
        lambda folder: os.truncate(folder / "teacher.safetensors", 1 << 42),
        lambda folder: _link(folder, "teacher.safetensors"),
        lambda folder: _link(folder, "teacher.json"),
        lambda folder: _pipe(folder / "teacher.json"),
        lambda folder: _pipe(folder / "teacher.safetensors"),
    ],
    ids=["fact", "added", "grown", "linked_file", "linked_note", "piped_note", "piped_file"],
)
def test_no_changed_fact_link_or_pipe_is_used(tmp_path, damage):
    result_store.keep(tmp_path, "k", STATE, {"epoch": 3})
    shutil.rmtree(cache_folder() / "teachers")
    assert result_store.find(tmp_path, "k").note == {"epoch": 3}
    damage(tmp_path)
    assert result_store.find(tmp_path, "k") is None


def test_a_teacher_that_an_earlier_version_stored_is_found(tmp_path):
    result_store.keep(tmp_path, "k", STATE, {"epoch": 3})
    _change_note(tmp_path, schema="kdcompress.teacher/1", facts_sha256=None)
    assert result_store.find(tmp_path, "k").note == {"epoch": 3}


def test_nothing_is_read_from_or_written_through_a_folder_that_is_a_link(tmp_path, capsys):
    result_store.keep(tmp_path / "run", "k", STATE, {})
    place = cache_folder() / "teachers" / "k"
    os.rename(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert result_store.find(tmp_path / "new", "k") is None
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "elsewhere").iterdir()}
    result_store.result(tmp_path / "new", "teacher", "k", ALONE, lambda: (STATE, {}))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "elsewhere").iterdir()}
    assert "the cache cannot be written (it is a link)" in capsys.readouterr().err


def _change_note(folder, **values):
    note = json.loads((folder / "teacher.json").read_text()) | values
    note = {name: value for name, value in note.items() if value is not None}
    (folder / "teacher.json").write_text(json.dumps(note))


def _link(folder, name):
    os.rename(folder / name, folder / "other")
    (folder / name).symlink_to(folder / "other")


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def test_a_damaged_teacher_of_the_run_is_replaced_by_the_shared_one(tmp_path):
    result_store.keep(tmp_path, "k", STATE, {})
    (tmp_path / "teacher.safetensors").write_bytes(b"short")
    assert result_store.find(tmp_path, "k") is not None


def test_a_teacher_fills_its_own_network_and_no_other():
    network = nn.Linear(2, 3)
    result_store.fill(network, STATE)
    assert torch.equal(network.weight, STATE["weight"])
    with pytest.raises(RunFolderError, match=r"does not fit its network .*--overwrite"):
        result_store.fill(nn.Linear(2, 4), STATE)


ALONE = Processes(0, 1, torch.device("cpu"))


def test_a_result_is_made_once_and_found_by_the_next_run(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return STATE, {"epoch": 3}

    first = result_store.result(tmp_path / "one", "heads", "k", ALONE, make)
    again = result_store.result(tmp_path / "one", "heads", "k", ALONE, make)
    other = result_store.result(tmp_path / "other", "heads", "k", ALONE, make)
    assert len(calls) == 1
    assert first.note == again.note == other.note == {"epoch": 3}
    assert first.sha256 == other.sha256
    assert (tmp_path / "other" / "heads.safetensors").is_file()
    result_store.result(tmp_path / "one", "heads", "another", ALONE, make)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)},
        {"weight": torch.zeros(3, 2)},
        {"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "more": torch.zeros(1)},
        {"weight": torch.zeros(3, 2), "bias": torch.zeros(3, dtype=torch.int64)},
        {},
    ],
    ids=["shape", "less", "more", "type", "nothing"],
)
@pytest.mark.parametrize("place", ["cache", "run"])
def test_a_result_that_does_not_fit_its_network_is_made_again(tmp_path, state, place, capsys):
    result_store.keep(tmp_path / ("run" if place == "run" else "other"), "k" * 32, state, {"epoch": 1})
    fits = result_store.fits_network(nn.Linear(2, 3))
    arguments = (tmp_path / "run", "teacher", "k" * 32, ALONE, lambda: (STATE, {"epoch": 3}), fits)
    stored = result_store.result(*arguments)
    assert stored.note == {"epoch": 3}
    assert "its tensors are not those of this run" in capsys.readouterr().err
    again = result_store.result(*arguments)
    assert again.note == {"epoch": 3}
    assert capsys.readouterr().err == ""


def test_a_key_chains_what_it_builds_on():
    first = result_store.key_of("heads", 1)
    assert result_store.key_of("labels", first) != result_store.key_of(
        "labels", result_store.key_of("heads", 2)
    )


def test_a_cache_that_cannot_be_written_is_known_before_the_work_and_costs_a_note(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("KDCOMPRESS_CACHE", str(tmp_path / "file"))
    said = []

    def make():
        said.append(capsys.readouterr().err)
        return STATE, {"top1": 0.5}

    stored = result_store.result(tmp_path / "checkpoints", "teacher", "k" * 32, ALONE, make)
    assert stored.note == {"top1": 0.5}
    assert "the cache cannot be written (Not a directory); this run is not affected" in said[0]
    assert result_store.find(tmp_path / "checkpoints", "k" * 32) is not None


def test_weights_that_are_not_finite_are_found_when_they_are_read(tmp_path, capsys):
    state = {**STATE, "weight": torch.full((3, 2), torch.nan)}
    result_store.keep(tmp_path, "k" * 32, state, {})
    assert result_store.find(tmp_path, "k" * 32) is None
    assert (
        "weight holds values that are not finite, so it is not used and made again" in capsys.readouterr().err
    )
