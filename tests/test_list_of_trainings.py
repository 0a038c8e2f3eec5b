"""A run is a list of trainings: killed in each, it goes on there and repeats none that had finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TRAININGS = ("teacher", "preparation", "student", "qat")
ARGUMENTS = (
    "distill", "--recipe", "quickstart", "--threads", "1", "--set", "teacher.model=cifar/resnet14",
    *(word for setting in (
        "method={name: sskd, head_epochs: 2}", "teacher.epochs=2", "teacher.min_top1=0", "train.epochs=2",
        "train.max_steps=4", "data.batch_size=700", "bench.rounds=1",
        "export.int8={qat_epochs: 2, max_drop: 100}",
    ) for word in ("--set", setting)),
)  # fmt: skip


def start(folder, label, *more):
    """Runs the command; it dies in the second epoch of the training with that label."""
    command = [sys.executable, str(ROOT / "tests" / "killed_run.py"), label, "2", *ARGUMENTS]
    place = {"PYTHONPATH": str(ROOT), "KDCOMPRESS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [*command, "--out", str(folder / "run"), *more],
        env={**os.environ, **place}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def lines(folder):
    text = (folder / "run" / "log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def epochs(folder):
    return [(line["phase"], line["epoch"]) for line in lines(folder)]


@pytest.mark.exhaustive
def test_a_run_killed_in_each_of_its_trainings_ends_in_the_same_bits(tmp_path):
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    code, errors = start(unbroken, "none")
    assert code == 0, errors
    whole = [(label, epoch) for label in TRAININGS for epoch in (1, 2)]
    assert epochs(unbroken) == whole
    for number, label in enumerate(TRAININGS):
        code, errors = start(killed, label, *(["--resume"] if number else []))
        assert code == -signal.SIGKILL, errors
        # The log is ahead of the checkpoint: the epoch is logged and will be trained again.
        assert epochs(killed) == whole[: 2 * number + 2]
    seconds = [line["seconds"] for line in lines(killed)]
    code, errors = start(killed, "none", "--resume")
    assert code == 0, errors
    assert epochs(killed) == whole
    # All lines but the last epoch of the last training were there before.
    assert [line["seconds"] for line in lines(killed)][:-1] == seconds[:-1]
    files = ["student.safetensors", "checkpoints/quantised.safetensors", "checkpoints/teacher.safetensors"]
    for name in [*files, "checkpoints/teacher_extras.safetensors"]:
        assert (killed / "run" / name).read_bytes() == (unbroken / "run" / name).read_bytes(), name
