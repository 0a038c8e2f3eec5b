"""A program started without standard streams, or in a folder that is gone, ends as with them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMMAND = f"{sys.executable} -m kdcompress"


def _shell(line, **options):
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120, **options)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("methods >&-", 0),
        ("methods --json <&-", 0),
        ("methods >&- 2>&- <&-", 0),
        ("show nowhere 2>&-", 2),
        ("show nowhere >&-", 2),
        ("show nowhere --no-such-option 2>&-", 2),
    ],
)
def test_closed_streams_change_no_exit_code(line, code):
    done = _shell(f"{COMMAND} {line}")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["show quickstart", "show nowhere", "methods"])
def test_a_current_folder_that_is_gone_is_one_message(tmp_path, command):
    gone = tmp_path / "gone"
    gone.mkdir()
    root = os.path.dirname(os.path.dirname(__file__))
    line = f"rmdir {gone} && {COMMAND} {command}"
    done = _shell(line, cwd=gone, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 2, done.stderr
    assert done.stderr == "Error: the current folder was removed; change into another one (cd)\n"
