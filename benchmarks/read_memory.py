"""Peak memory of a run that reads the teacher's outputs from the cache, beside plain training of the student.

    python benchmarks/read_memory.py [--steps 4] [--batch 32] [--work DIR]

resnet34 → resnet18 (random weights, float32) on 64 JPEGs of 224 pixels, one thread, a few steps. Each way is
a process of its own: `cache: off` has the teacher at every step; `mode: read` finds its outputs, which
another process has filled; `plain` has no teacher. Given is the process's peak of resident memory when the
student's training has ended, and at the end of the whole run, with its export, proof and timing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

RUN = """
import json, resource, sys
from kdcompress import pipeline
from kdcompress.cli import main
peaks = []
def peak():
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
def training(*arguments, train=pipeline.run_training):
    outcome = train(*arguments)
    peak()
    return outcome
pipeline.run_training = training
try:
    main(sys.argv[1:])
except SystemExit as stop:
    if stop.code:
        raise
peak()
print(json.dumps(peaks))
"""
WAYS = {
    "cache: off": ("teacher.cache=off",),
    "filling": ("teacher.cache.views=1", "teacher.cache.mode=fill"),
    "mode: read": ("teacher.cache.views=1", "teacher.cache.mode=read"),
    "plain": ("teacher=null", "method.name=none"),
}


def pictures(folder, count):
    """Writes JPEGs of two classes, cut out of scikit-learn's two photographs."""
    draw = random.Random(0)
    for number in range(count):
        pixels = load_sample_images().images[number % 2]
        left, top = (draw.randrange(pixels.shape[1 - axis] - 224) for axis in (0, 1))
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[top : top + 224, left : left + 224]).save(path, quality=90)


def peaks(work, name, options):
    """Returns the two peaks of a run in MB."""
    settings = (
        "teacher.weights=random", "teacher.epochs=1", "teacher.min_top1=0", "student.weights=random",
        "train.epochs=4", f"train.max_steps={options.steps}", "train.threads=1", "train.precision=fp32",
        f"data.batch_size={options.batch}", "data.held_out=8", "data.workers=0", "bench.rounds=1",
        "export.formats=[onnx]",
    )  # fmt: skip
    if name == "plain":
        settings = tuple(setting for setting in settings if not setting.startswith("teacher."))
    command = [sys.executable, "-c", RUN, "distill", "--recipe", "resnet34-to-resnet18", "--quiet", "--json"]
    command += ["--data", str(work / "pictures"), "--out", str(work / name.replace(": ", "-"))]
    command += [word for setting in (*settings, *WAYS[name]) for word in ("--set", setting)]
    environment = {**os.environ, "KDCOMPRESS_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdcompress-memory-", dir=options.work) as work:
        pictures(Path(work) / "pictures", 64)
        peaks(Path(work), "filling", options)  # trains the teacher, and fills the cache
        found = {name: peaks(Path(work), name, options) for name in ("plain", "mode: read", "cache: off")}
    print("| run | peak until the student is trained, MB | ratio to plain | of the whole run, MB | ratio |")
    print("|---|---|---|---|---|")
    for name, (trained, whole) in found.items():
        ratios = (value / plain for value, plain in zip((trained, whole), found["plain"], strict=True))
        cells = (f"{value:.0f} | {ratio:.2f}" for value, ratio in zip((trained, whole), ratios, strict=True))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
