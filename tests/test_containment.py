"""A model may name files of its own folder only: nothing else of the machine is read or sent for it."""

from __future__ import annotations

import os
import re

import pytest

from kdcompress.containment import contained_file, open_in_folder
from kdcompress.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret").write_text("not for others")
    folder = tmp_path / "model"
    (folder / "deeper").mkdir(parents=True)
    for name in ("model.onnx", "weights.bin", "deeper/weights.bin"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("name", ["weights.bin", "deeper/weights.bin", "./weights.bin"])
def test_a_file_of_the_folder_is_given_with_its_links_resolved(folder, name):
    assert contained_file(folder / "model.onnx", name) == (folder / name).resolve()
    (folder / "link.bin").symlink_to(name)
    assert contained_file(folder / "model.onnx", "link.bin") == (folder / name).resolve()


def test_a_model_behind_a_link_that_a_user_names_has_the_folder_that_it_lies_in(folder, tmp_path):
    (tmp_path / "named.onnx").symlink_to(folder / "model.onnx")
    (tmp_path / "shortcut").symlink_to(folder)
    for model in (tmp_path / "named.onnx", tmp_path / "shortcut/model.onnx"):
        assert contained_file(model, "weights.bin") == (folder / "weights.bin").resolve()


def _refused(folder, name):
    message = re.escape(f"{folder}/model.onnx: ") + ".*" + re.escape(repr(name)) + ".*cp -L"
    with pytest.raises(UserError, match=message) as caught:
        contained_file(folder / "model.onnx", name)
    assert caught.value.exit_code == 2


def test_what_leads_out_of_the_folder_is_refused(folder, tmp_path):
    (folder / "link.bin").symlink_to(tmp_path / "secret")
    (folder / "chain.bin").symlink_to("link.bin")
    (folder / "out").symlink_to(tmp_path)
    (tmp_path / "model-2").mkdir()
    (tmp_path / "model-2/weights.bin").write_text("of a folder whose name begins in the same way")
    (folder / "beside.bin").symlink_to(tmp_path / "model-2/weights.bin")
    absolute = str(folder / "weights.bin")
    for name in (
        "link.bin", "chain.bin", "out/secret", "beside.bin", "../secret", "deeper/../weights.bin", absolute,
        "/etc/hostname", "",
    ):  # fmt: skip
        _refused(folder, name)


def test_what_is_no_regular_file_is_refused(folder):
    os.mkfifo(folder / "pipe.bin")
    (folder / "pipe_link.bin").symlink_to("pipe.bin")
    (folder / "null.bin").symlink_to("/dev/null")
    (folder / "loop.bin").symlink_to("loop.bin")
    for name in ("pipe.bin", "pipe_link.bin", "null.bin", "loop.bin", "deeper", "nul\0.bin"):
        _refused(folder, name)


def test_a_file_that_is_not_there_is_refused_in_words_of_its_own(folder):
    with pytest.raises(UserError, match=r"keeps tensors in 'lost\.bin', and there is no such file"):
        contained_file(folder / "model.onnx", "lost.bin")


@pytest.mark.parametrize("kind", ["link", "folder_link", "pipe", "folder", "device"])
def test_a_file_of_a_cache_is_opened_through_no_link_and_is_no_pipe(tmp_path, kind):
    folder, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "part").write_bytes(b"own")
    with open(open_in_folder(folder / "part"), "rb") as file:
        assert file.read() == b"own"
    os.rename(folder / "part", elsewhere / "part")
    if kind == "link":
        (folder / "part").symlink_to(elsewhere / "part")
    elif kind == "folder_link":
        folder.rmdir()
        folder.symlink_to(elsewhere)
        os.close(open_in_folder(folder / "part", folder=False))
    elif kind == "pipe":
        os.mkfifo(folder / "part")
    elif kind == "folder":
        (folder / "part").mkdir()
    else:
        (folder / "part").symlink_to("/dev/zero")
    with pytest.raises(OSError, match=r"."):
        open_in_folder(folder / "part")
    with pytest.raises(OSError, match=r"."):
        open_in_folder(folder / "part", os.O_RDWR | os.O_CREAT)
    assert (elsewhere / "part").read_bytes() == b"own"
