from __future__ import annotations

import errno
import hashlib
import json
import os

import pytest

from kdcompress import atomic
from kdcompress.errors import UserError, WorldError


def test_written_bytes_and_text_are_read_back(tmp_path):
    atomic.write_bytes(tmp_path / "a", b"\x00\xff")
    atomic.write_text(tmp_path / "b", "naïve\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_text(encoding="utf-8") == "naïve\n"


def test_json_is_indented_utf8_with_a_final_newline(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"é": [1]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "é" in text
    assert json.loads(text) == {"é": [1]}


def test_json_refuses_what_is_no_json_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    atomic.write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.0}


def _write_half(path, error):
    with atomic.replacing(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a"
    atomic.write_text(path, "old")
    with pytest.raises(RuntimeError):
        _write_half(path, RuntimeError)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_no_temporary(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _write_half(tmp_path / "a", KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_the_greatest_length_has_a_shorter_temporary_one(tmp_path):
    name = "x" * 250 + ".json"
    atomic.write_text(tmp_path / name, "y")
    assert (tmp_path / name).read_text() == "y"


def test_the_final_name_appears_only_after_the_content_is_on_the_disk(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b))[1])
    atomic.write_text(tmp_path / "a", "x")
    assert order == ["fsync", "replace", "fsync"]  # the file, its name, the folder


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, WorldError, "disk is full"),
        (errno.EDQUOT, WorldError, "quota"),
        (errno.EIO, WorldError, "cannot be written"),
        (errno.EACCES, UserError, "no permission to write here"),
        (errno.EROFS, UserError, "no permission to write here"),
    ],
)
def test_an_error_of_the_system_becomes_one_sentence(tmp_path, monkeypatch, number, kind, words):
    path = tmp_path / "a"
    atomic.write_text(path, "old")

    def failing(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(kind, match=words) as caught:
        atomic.write_text(path, "new")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder") as caught:
        atomic.write_text(tmp_path / "none" / "a", "x")
    assert str(tmp_path / "none") in str(caught.value)


def test_a_folder_in_the_place_of_the_file_is_the_users_to_move(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        atomic.write_text(tmp_path / "a", "x")


def test_sha256_is_that_of_the_content(tmp_path):
    content = os.urandom(3 << 20)  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert atomic.sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_sha256_of_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        atomic.sha256_of(tmp_path / "a")
