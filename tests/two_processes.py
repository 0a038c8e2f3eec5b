"""Starts a script in two processes that find each other as torchrun's do, and what the script begins with."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from kdcompress.train.processes import join, leave

TESTS = Path(__file__).parent


def run_two(script: Path, folder: Path, timeout: float = 600):
    """Runs `script FOLDER` in two gloo processes; each writes FOLDER/RANK.pt, which is returned by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, script.parent)))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    output = []
    try:
        output = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(output)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def join_and_run(main):
    """Runs `main(FOLDER, processes)` in one of the two processes, with the folder of the command line."""
    torch.set_num_threads(1)
    processes = join("cpu")
    try:
        main(Path(sys.argv[1]), processes)
    finally:
        leave()
