from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch
from small_training import Small

from kdcompress import atomic
from kdcompress.errors import RunFolderError, WorldError
from kdcompress.train import checkpoint

STATE = {"position": {"step": 3, "seconds": 1.5}, "modules": {"a": {"w": torch.arange(64.0).reshape(8, 8)}}}


def saved(folder):
    path = folder / "student.pt"
    checkpoint.save(path, STATE)
    return path


def test_what_is_saved_is_read_back_with_its_strides(tmp_path):
    weight = torch.rand(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    checkpoint.save(tmp_path / "a.pt", {**STATE, "weight": weight})
    state = checkpoint.load(tmp_path / "a.pt").state
    assert state["schema"] == checkpoint.SCHEMA
    assert state["position"] == STATE["position"]
    assert torch.equal(state["modules"]["a"]["w"], STATE["modules"]["a"]["w"])
    assert torch.equal(state["weight"], weight)
    assert state["weight"].stride() == weight.stride()


def test_where_there_is_none_there_is_none(tmp_path):
    assert checkpoint.load(tmp_path / "student.pt") is None


def test_a_checkpoint_is_the_old_one_until_it_is_the_new_one(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()

    def fails(source, target):
        assert Path(source).stat().st_size > 0
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(atomic.os, "replace", fails)
    with pytest.raises(WorldError, match="disk is full"):
        checkpoint.save(path, {**STATE, "position": {"step": 4}})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["student.pt"]


@pytest.mark.parametrize("keep", [0, 1, 100, 500, -1])
def test_a_truncated_checkpoint_is_refused_with_one_sentence(tmp_path, keep):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        RunFolderError, match=r"student.pt: the checkpoint is damaged \(.*--overwrite"
    ) as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mask", [0xFF, 0x01, 0x08])
def test_a_flipped_byte_anywhere_is_refused_or_harmless(tmp_path, mask):
    """With 0x08 in the list of the members, a stored one is said to be packed."""
    path = saved(tmp_path)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 7 if mask == 0xFF else 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        try:
            state = checkpoint.load(path).state
        except RunFolderError:
            refused += 1
            continue
        # padding and dates of the archive may change; what is read may not
        assert torch.equal(state["modules"]["a"]["w"], STATE["modules"]["a"]["w"]), place
        assert state["position"] == STATE["position"], place
    assert refused


@pytest.mark.parametrize("content", [{"schema": "kdcompress.checkpoint/2"}, {"position": {}}, [1, 2]])
def test_another_schema_is_refused_with_what_to_do(tmp_path, content):
    torch.save(content, tmp_path / "student.pt")
    with pytest.raises(
        RunFolderError, match=r"this version reads 'kdcompress.checkpoint/1'; go on with the version"
    ):
        checkpoint.load(tmp_path / "student.pt")


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"schema": checkpoint.SCHEMA, "x": Evil()}, tmp_path / "student.pt")
    with pytest.raises(RunFolderError, match="damaged"):
        checkpoint.load(tmp_path / "student.pt")
    assert not (tmp_path / "owned").exists()


def saved_twice(folder):
    path = saved(folder)
    checkpoint.save(path, {**STATE, "position": {"step": 9}})
    return path


def test_a_checkpoint_that_unpacks_to_gigabytes_is_refused_before_it_is_read(tmp_path):
    path = saved(tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("student/data/9", bytes(100 << 20))
    with pytest.raises(RunFolderError, match=r"the checkpoint is damaged \(it would take 105 MB unpacked\)"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "error", [KeyError("modules"), RuntimeError("size\nmismatch"), ValueError("x" * 999)]
)
def test_a_checkpoint_of_another_training_is_one_sentence(error):
    with (
        pytest.raises(RunFolderError, match=r"checkpoint is not of this training .*--overwrite") as caught,
        checkpoint.fitting(Path("student.pt")),
    ):
        raise error
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path):
    path = saved_twice(tmp_path)
    assert checkpoint.load(path).state["position"] == {"step": 9}
    assert checkpoint.load(path).warning is None
    path.write_bytes(path.read_bytes()[:100])
    loaded = checkpoint.load(path)
    assert loaded.state["position"] == STATE["position"]
    assert "student.pt: the checkpoint is damaged (" in loaded.warning
    assert loaded.warning.endswith("continuing from the one before, at step 3")


def test_where_both_are_damaged_one_sentence_says_so(tmp_path):
    path = saved_twice(tmp_path)
    for file in (path, checkpoint.previous(path)):
        file.write_bytes(b"short")
    with pytest.raises(RunFolderError, match=r"so is the one before, student\.previous\.pt .*--overwrite"):
        checkpoint.load(path)


def test_a_save_after_a_kill_between_the_two_renames_leaves_no_temporary_file(tmp_path):
    path = saved_twice(tmp_path)
    checkpoint.previous(path).unlink()
    os.link(path, checkpoint.previous(path))
    checkpoint.save(path, {**STATE, "position": {"step": 12}})
    assert sorted(os.listdir(tmp_path)) == ["student.previous.pt", "student.pt"]
    assert checkpoint.load(path).state["position"] == {"step": 12}


def test_a_file_system_without_hard_links_gets_a_copy(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(checkpoint.os, "link", no_links)
    path = saved_twice(tmp_path)
    path.write_bytes(b"short")
    assert checkpoint.load(path).state["position"] == STATE["position"]


AT = {"phase": 0, "epoch": 0, "batch": 3, "step": 3, "phase_step": 3, "seconds": 1.0, "epoch_seconds": 1.0}


@pytest.mark.parametrize(
    ("other", "changed"),
    [
        ({"student": "torchvision/mobilenet_v3_small"}, None),
        ({}, {"position": {"step": 3}}),
        ({}, {"choice": 7}),
        ({}, {"random_states": [{}]}),
        ({}, {"optimisers": []}),
        ({}, {"log_sizes": {"log.jsonl": "many"}}),
        ({}, {"log_sizes": {"log.jsonl": -1}}),
        ({}, {"log_sizes": [1]}),
        ({}, {"position": {**AT, "phase": 7}}),
        ({}, {"position": {**AT, "phase": "last"}}),
        ({}, {"position": {**AT, "batch": -1}}),
        ({}, {"position": {**AT, "step": 1.5}}),
        ({}, {"position": {**AT, "seconds": float("nan")}}),
        ({}, {"position": [1]}),
    ],
    ids=["network", "position", "choice", "random", "optimisers", "sizes", *map(str, range(8))],
)
def test_a_checkpoint_of_something_else_in_its_place_is_one_sentence(tmp_path, other, changed):
    Small(tmp_path / "other", train={"max_steps": 3}, **other).run()
    path = tmp_path / "own" / "student.pt"
    path.parent.mkdir()
    state = torch.load(tmp_path / "other" / "student.pt", weights_only=True)
    torch.save({**state, **(changed or {})}, path)
    (path.parent / "log.jsonl").write_text("{}\n")
    with pytest.raises(
        RunFolderError, match=r"student\.pt: the checkpoint is not of this training .*--overwrite"
    ):
        Small(tmp_path / "own").run()
