"""One of two processes dies in the training: the other ends at once, with exit code 5 and one message."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SETTINGS = (
    "method.name=none", "teacher=null", "train.epochs=4", "data.batch_size=512", "bench.rounds=1",
    "train.checkpoint_minutes=1e-9",
)  # fmt: skip
DIES = """
import os, signal, sys
from kdcompress.cli import main
from kdcompress.train.trainer import Trainer
def dies(self, minimise):
    save(self, minimise)
    if (self.processes.rank, self.at.epoch) == (int(sys.argv[1]), 1):
        os.kill(os.getpid(), signal.SIGKILL)
save, Trainer._save = Trainer._save, dies
main(sys.argv[2:])
"""


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_the_other_process_of_one_that_is_lost_says_so_and_keeps_the_checkpoint(rank, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["distill", "--recipe", "quickstart", "--threads", "1", "-q", "--out", str(tmp_path / "run")]
    words += [word for setting in SETTINGS for word in ("--set", setting)]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", DIES, str(rank), *words],
            env={**os.environ, **shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    assert codes[rank] == -signal.SIGKILL, errors
    assert codes[1 - rank] == 5, errors
    said = errors[1 - rank]
    assert "Error: another process of this run has ended" in said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "checkpoints" / "student.pt").exists()
