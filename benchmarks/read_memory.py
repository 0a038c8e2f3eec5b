"""Peak memory of a run that reads the teacher's outputs from the cache, beside plain training of the student.

    python benchmarks/read_memory.py [--steps 2] [--batch 64] [--side 64] [--work DIR]

resnet34 → resnet18 (random weights, float32) on small JPEGs, one thread, a few steps. Each way is a process
of its own: `cache: off` has the teacher at every step; `mode: read` finds its outputs, which another process
has filled; `plain` has no teacher. Given is the process's peak of resident memory when the student is
trained.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

RUN = """
import os, resource, sys
from kdcompress import pipeline
from kdcompress.cli import main
def training(*arguments, train=pipeline.run_training):
    train(*arguments)
    with open(os.environ["PEAK"], "w") as file:
        file.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    os._exit(0)
pipeline.run_training = training
main(sys.argv[1:])
"""
WAYS = {
    "cache: off": ("teacher.cache=off",),
    "filling": ("teacher.cache.views=1", "teacher.cache.mode=fill"),
    "mode: read": ("teacher.cache.views=1", "teacher.cache.mode=read"),
    "plain": ("teacher=null", "method.name=none"),
}


def pictures(folder, count, side):
    """Writes JPEGs of two classes, cut out of scikit-learn's two photographs."""
    draw, photographs = random.Random(0), load_sample_images().images
    for number in range(count):
        pixels = photographs[number % 2]
        left, top = (draw.randrange(pixels.shape[1 - axis] - side) for axis in (0, 1))
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[top : top + side, left : left + side]).save(path, quality=90)


def peak(work, name, options):
    """Returns the peak of a run in MB."""
    settings = (
        "teacher.weights=random", "teacher.epochs=1", "teacher.min_top1=0", "student.weights=random",
        "train.epochs=4", f"train.max_steps={options.steps}", "train.threads=1", "train.precision=fp32",
        f"data.batch_size={options.batch}", f"data.image_size={options.side}", "data.held_out=8",
        "data.workers=0",
    )  # fmt: skip
    if name == "plain":
        settings = tuple(setting for setting in settings if not setting.startswith("teacher."))
    command = [sys.executable, "-c", RUN, "distill", "--recipe", "resnet34-to-resnet18", "--quiet"]
    command += ["--data", str(work / "pictures"), "--out", str(work / name.replace(": ", "-"))]
    command += [word for setting in (*settings, *WAYS[name]) for word in ("--set", setting)]
    own = {"KDCOMPRESS_CACHE": str(work / "cache"), "OMP_NUM_THREADS": "1", "PEAK": str(work / "peak")}
    subprocess.run(command, env={**os.environ, **own}, check=True)
    return float((work / "peak").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdcompress-memory-", dir=options.work) as work:
        # A step, the images that are held out and those that are tested on.
        pictures(Path(work) / "pictures", 3 * options.batch, options.side)
        peak(Path(work), "filling", options)  # trains the teacher, and fills the cache
        found = {name: peak(Path(work), name, options) for name in ("plain", "mode: read", "cache: off")}
    print("| run | peak until the student is trained, MB | ratio to plain |")
    print("|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.0f} | {value / found['plain']:.2f} |")


if __name__ == "__main__":
    main()
