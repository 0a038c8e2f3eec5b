"""A run in a folder whose name is no UTF-8 is read like any other."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdcompress.cli import main
from kdcompress.deploy.load import load
from kdcompress.networks.read_checkpoint import read_state_dict

FINISHED = Path(__file__).parent.parent / "fixtures" / "e33f4e2" / "finished"

pytestmark = pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 names only")


@pytest.fixture
def run(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9"))
    return Path(shutil.copytree(FINISHED, folder))


def test_report_writes_its_pages_there(run):
    (run / "report.html").unlink()
    done = CliRunner().invoke(main, ["report", str(run)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert (run / "report.html").is_file()


def test_a_truncated_file_there_is_damaged(run):
    path = run / "checkpoints" / "test_predictions.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    done = CliRunner().invoke(main, ["report", str(run)])
    assert done.exit_code == 2
    assert "test_predictions.safetensors: is damaged" in done.stderr


def test_the_networks_weights_are_read_there(run):
    assert read_state_dict(run / "student.safetensors")
    network, _ = load(run / "student.safetensors")
    assert network is not None
