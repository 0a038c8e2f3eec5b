"""A run as a user starts it, stopped by SIGTERM in the middle of the student's training."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [
    sys.executable, "-m", "kdcompress", "distill", "--recipe", "quickstart", "--out", "run",
    "--set", "train.epochs=5", "--set", "teacher.epochs=2", "--set", "bench.rounds=1",
    "--set", "teacher.min_top1=0", "--set", "export.formats=[safetensors]",
]  # fmt: skip


def student_of(folder):
    return hashlib.sha256((folder / "run" / "student.safetensors").read_bytes()).hexdigest()


def log_of(folder):
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_run_stopped_by_sigterm_exits_130_and_its_resume_gives_the_same_file(tmp_path):
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    for folder in (unbroken, stopped):
        folder.mkdir()
    # Its teacher is in the cache afterwards, so the second run begins with the student.
    done = subprocess.run(COMMAND, cwd=unbroken, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr

    process = subprocess.Popen(
        COMMAND, cwd=stopped, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 600
    while not (stopped / "run" / "checkpoints" / "student.pt").exists():  # the end of the first epoch
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert out == ""
    assert "stopped at step" in err
    assert err.rstrip().endswith("--resume")
    assert "Traceback" not in err
    assert not (stopped / "run" / "student.safetensors").exists()

    done = subprocess.run([*COMMAND, "--resume"], cwd=stopped, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert student_of(stopped) == student_of(unbroken)
    students = [[e for e in log_of(folder) if e["phase"] == "student"] for folder in (unbroken, stopped)]
    assert [line["epoch"] for line in students[1]] == [1, 2, 3, 4, 5]
    assert [line["losses"] for line in students[0]] == [line["losses"] for line in students[1]]
