"""resnet101-to-resnet18 at 224x224 on an image folder, with a teacher from a local file: every gate, end to
end.

    python benchmarks/image_folder.py [--work DIR] [--threads N]

The folder holds 300 of scikit-learn's digits, written as JPEG, in five classes. Run 1 takes a teacher file
with those five classes as it is (`teacher.train=never`, its score waived: its weights are random). Run 2
takes one with seven, so that it is fine-tuned first. Both train for two steps: it is the way from a folder to
proved files that is tried, not the accuracy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
import torchvision
from PIL import Image

CLASSES, PER_CLASS = 5, 60
NAMES = ("zero", "one", "two", "three", "four")


def write_images(folder):
    digits = sklearn.datasets.load_digits()
    for number, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for index in np.flatnonzero(digits.target == number)[:PER_CLASS]:
            pixels = (digits.images[index] * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).resize((256, 256), Image.BICUBIC).save(folder / name / f"{index}.jpg")


def write_teacher(file, classes):
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet101(num_classes=classes).state_dict(), file)


def run(work, out, settings, threads):
    command = [
        sys.executable, "-m", "kdcompress", "distill", "--recipe", "resnet101-to-resnet18",
        "--data", str(work / "images"), "--out", str(work / out), "--overwrite", "--threads", str(threads),
    ]  # fmt: skip
    for setting in ("train.max_steps=2", "teacher.min_top1=0", *settings):
        command += ["--set", setting]
    began = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    gates = json.loads((work / out / "gates.json").read_text())["gates"]
    passed = sum(gate["passed"] for gate in gates)
    teacher = next(gate["detail"] for gate in gates if gate["gate"] == "teacher_top1")
    seconds = time.perf_counter() - began
    print(f"{out}: exit {code}, {passed} of {len(gates)} gates, {seconds:.0f} s; teacher_top1: {teacher}")
    return code


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--work", type=Path, help="kept; default: a temporary folder")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        write_images(work / "images")
        write_teacher(work / "five.pth", CLASSES)
        write_teacher(work / "seven.pth", CLASSES + 2)
        same = [f"teacher.weights={work / 'five.pth'}", "teacher.train=never"]
        other = [f"teacher.weights={work / 'seven.pth'}", "teacher.train=auto"]
        codes = (
            run(work, "same-classes", same, options.threads),
            run(work, "other-classes", other, options.threads),
        )
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
