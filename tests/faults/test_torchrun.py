"""torchrun restarts a run whose process died, and a run on two nodes is that of as many processes on one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
SETTINGS = (
    "method.name=none", "teacher=null", "train.epochs=3", "data.batch_size=512",
    "bench.rounds=1", "export.formats=[safetensors]",
)  # fmt: skip
ROOT = HERE.parent.parent
SETTING = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Each start has its own store: a shared one keeps the addresses of the processes that died."""
DYING_STEP = 3
"""Within the second epoch; each has two steps."""


def words(out):
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["distill", "--recipe", "quickstart", "--threads", "1", "-q", "--out", str(out), *settings]


def started(options, program, cwd, cache):
    cwd.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, *map(str, program)],
        cwd=cwd, env={**os.environ, **SETTING, "PYTHONPATH": str(ROOT), "KDCOMPRESS_CACHE": str(cache)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(*processes):
    """Waits for the ends of all processes, which must be successes; returns their outputs."""
    try:
        outputs = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.terminate()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs


def student(folder):
    return (folder / "student.safetensors").read_bytes()


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(request, tmp_path_factory):
    """A run of so many processes on one node that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    options = ["--standalone", f"--nproc-per-node={request.param}"]
    ended(
        started([*options, "-m"], ["kdcompress", *words(folder / "run")], folder / "work", folder / "cache")
    )
    return request.param, folder / "run"


@pytest.mark.exhaustive
@pytest.mark.parametrize("undisturbed", [2], indirect=True)
def test_a_run_that_lost_a_process_is_restarted_and_ends_in_the_bits_of_an_undisturbed_one(
    undisturbed, tmp_path
):
    count, expected = undisturbed
    mark, run = tmp_path / "died", tmp_path / "run"
    options = ["--standalone", f"--nproc-per-node={count}", "--max-restarts=1"]
    program = [HERE / "dying_rank.py", count - 1, DYING_STEP, mark, *words(run), "--resume"]
    (output,) = ended(started(options, program, tmp_path / "work", tmp_path / "cache"))
    assert mark.exists(), output
    assert student(run) == student(expected)
    assert steps(run) == steps(expected) == [2, 4, 6]


@pytest.mark.exhaustive
@pytest.mark.parametrize("undisturbed", [4], indirect=True)
def test_two_nodes_train_what_one_trains_and_only_the_first_one_writes(undisturbed, tmp_path):
    # Each node has its own working folder and cache; one of them does not see the run folder.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        started(
            [
                "--nnodes=2", "--nproc-per-node=2",
                "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", "-m",
            ],
            ["kdcompress", *words("run"), "--resume"],
            tmp_path / f"node{number}", tmp_path / f"cache{number}",
        )
        for number in range(2)
    ]  # fmt: skip
    ended(*nodes)
    written = [number for number in range(2) if (tmp_path / f"node{number}" / "run").exists()]
    assert len(written) == 1
    folder = tmp_path / f"node{written[0]}" / "run"
    assert list((tmp_path / f"node{1 - written[0]}").iterdir()) == []
    assert student(folder) == student(undisturbed[1])
    assert steps(folder) == [2, 4, 6]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(before, after, tmp_path):
    # Batch-norm statistics are those of a process's rows: without them the processes do not matter.
    settings = ["--set", "train.freeze_bn=true", "--set", "train.precision=fp32"]
    run, whole, mark = tmp_path / "run", tmp_path / "whole", tmp_path / "died"

    def options(count):
        return ["--standalone", f"--nproc-per-node={count}"]

    def start(count, program):
        return started([*options(count), *program], [], tmp_path / "work", tmp_path / "cache")

    ended(start(before, ["-m", "kdcompress", *words(whole), *settings]))
    dying = [HERE / "dying_rank.py", before - 1, DYING_STEP, mark, *words(run), *settings]
    died = start(before, map(str, dying))
    output, _ = died.communicate(timeout=900)
    assert died.returncode != 0, output
    assert mark.exists(), output
    first = (run / "log.jsonl").read_text().splitlines()[0]
    ended(start(after, ["-m", "kdcompress", *words(run), *settings, "--resume"]))
    assert (run / "log.jsonl").read_text().splitlines()[0] == first
    assert steps(run) == [2, 4, 6]
    weights, expected = (load_file(folder / "student.safetensors") for folder in (run, whole))
    for name, tensor in expected.items():
        assert torch.allclose(weights[name], tensor, rtol=1e-3, atol=1e-4), name
