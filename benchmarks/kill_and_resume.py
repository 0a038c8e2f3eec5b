"""Kill -9 at random moments, resume, and compare the student's bits with those of a run that nobody killed.

    python benchmarks/kill_and_resume.py [--kills 20] [--full]

Each kill is a run of its own with a private cache. Between the kill and the resume it is checked that every
process which the run had started is gone. --full takes quickstart at its full length, once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SHORT = [
    "train.epochs=6",
    "teacher.epochs=3",
    "teacher.min_top1=0",
    "bench.rounds=3",
    "train.checkpoint_minutes=0.01",
]
START_UP_S = 3
"""Before it there is nothing but imports."""
GRACE_S = 10
"""Within which the processes of a killed run must have ended by themselves."""


def command(folder, settings):
    overrides = [word for setting in settings for word in ("--set", setting)]
    return [
        sys.executable, "-m", "kdcompress", "distill", "--recipe", "quickstart", "--out", str(folder / "run"),
        "--resume", *overrides,
    ]  # fmt: skip


def environment(folder):
    return {**os.environ, "KDCOMPRESS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def run_to_end(folder, settings):
    done = subprocess.run(
        command(folder, settings), env=environment(folder), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {done.stderr}")
    return hashlib.sha256((folder / "run" / "student.safetensors").read_bytes()).hexdigest()


def kill_after(folder, settings, seconds):
    """Starts a run, kills it, and says in which phase it was; None: it had ended before."""
    process = subprocess.Popen(
        command(folder, settings),
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(seconds)
    if process.poll() is not None:
        return None
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=GRACE_S)
    if alive:
        raise SystemExit(f"left behind after the kill: {[p.cmdline() for p in alive]}")
    return phase(folder / "run")


def phase(run):
    """What the run was doing, from what it had left."""
    if not (run / "recipe.yaml").exists():
        return "before the folder"
    after = {"results.json": "pages", "gates.json": "bench", "checkpoints/student.pt": "student or ship"}
    for file, name in after.items():
        if (run / file).exists():
            return name
    return "student" if (run / "checkpoints/teacher.safetensors").exists() else "teacher"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--full", action="store_true", help="quickstart as it is, one kill")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings, kills = ([], 1) if options.full else (SHORT, options.kills)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        reference = run_to_end(Path(root) / "unbroken", settings)
        length = time.perf_counter() - began
        print(f"unbroken: {length:.1f} s, student.safetensors sha256 {reference}", flush=True)
        killed = same = 0
        while killed < kills:
            folder = Path(root) / "run"
            seconds = moments.uniform(START_UP_S, length)
            where = kill_after(folder, settings, seconds)
            if where is None:  # the machine is faster now than it was for the unbroken run
                length = min(length, seconds)
            else:
                killed += 1
                digest = run_to_end(folder, settings)
                same += digest == reference
                verdict = "same bits" if digest == reference else f"DIFFERENT: {digest}"
                print(f"{killed:2}. killed after {seconds:5.1f} s ({where}): {verdict}", flush=True)
            shutil.rmtree(folder)
        print(f"{same} of {kills} resumed to the same bits; no process was left behind")
        sys.exit(same != kills)


if __name__ == "__main__":
    main()
