"""Images per second of a distillation step: the defaults against float32 NCHW eager PyTorch.

    python benchmarks/training_step.py [--threads N] [--rounds 15]

Both take batches of 64 images of 32x32 pixels through resnet32x4 (teacher) and resnet8x4 (student), KD loss,
backward and SGD. The default step is the product's own: its `Method`, `Tapped`, `Teacher` and `Minimiser`.
The plain one is what a script without care would do. Rounds of both are interleaved in shuffled order and the
ratio is taken per round, so that a slow machine slows both. Peak memory is that of a process which runs one
of the two.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from kdcompress.bench.stats import interval
from kdcompress.cores import granted_cores
from kdcompress.data.batch import Batch, DataInfo, View
from kdcompress.methods.base import find_method
from kdcompress.networks.build import build
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.recipe import OptimSection, TrainSection
from kdcompress.train import precision
from kdcompress.train.job import Job
from kdcompress.train.minimiser import Minimiser
from kdcompress.train.processes import Processes

BATCH, SIDE, CLASSES = 64, 32, 100
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)


def network(name):
    torch.manual_seed(0)
    return build(f"cifar/{name}", num_classes=CLASSES, channels=3, image_size=(SIDE, SIDE))


def default_step(compiled=False):
    """The product's step."""
    device = torch.device("cpu")

    def tapped(name):
        made = Tapped(network(name), f"cifar/{name}", image_size=(SIDE, SIDE), channels=3, mean=MEAN, std=STD)
        made.precision = precision.dtype(precision.resolve("auto", device))
        return made

    student, teacher = tapped("resnet8x4"), FrozenTeacher(tapped("resnet32x4"))
    cls = find_method("kd")
    info = DataInfo(CLASSES, torch.zeros(1, dtype=torch.int64), (SIDE, SIDE), 3)
    method = cls(cls.Config(), Networks(student, teacher), info)
    job = Job(
        "student", Path(tempfile.mkdtemp()), TrainSection(epochs=1), OptimSection(lr=0.05), 1, False, ""
    )
    minimise = Minimiser(method, method.parameter_sets(), job, Processes(0, 1, device))
    student.train_mode(True)
    if compiled:
        student.compiled = torch.compile(student.network)
        teacher.compile()

    def step(images, labels):
        view = View(images.contiguous(memory_format=torch.channels_last), torch.arange(len(labels)), 0)
        method.step(Batch((view,), labels, view.indices), minimise)

    return step


def compiled_step():
    """The product's step with `train.compile: true`."""
    return default_step(compiled=True)


def plain_step():
    """Float32, NCHW, eager."""
    student, teacher = network("resnet8x4").train(), network("resnet32x4").eval()
    optimiser = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    def step(images, labels):
        images = (images - mean) / std
        with torch.no_grad():
            target = teacher(images)
        logits = student(images)
        soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(target / 4, 1), reduction="batchmean") * 16
        loss = 0.9 * soft + 0.1 * F.cross_entropy(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()

    return step


STEPS = {"default": default_step, "default, compiled": compiled_step, "plain": plain_step}


def time_steps(step, data, count):
    began = time.perf_counter()
    for _ in range(count):
        step(*data)
    return count * BATCH / (time.perf_counter() - began)


def peak_mb():
    """Of this process since its start: getrusage would also count what it was forked from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def peak_memory_mb(name, threads):
    command = [sys.executable, __file__, "--threads", str(threads), "--only", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=granted_cores())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5, help="per round")
    parser.add_argument("--only", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = torch.rand(BATCH, 3, SIDE, SIDE), torch.randint(CLASSES, (BATCH,))
    if options.only:
        time_steps(STEPS[options.only](), data, 10)
        print(peak_mb())
        return
    steps = {name: make() for name, make in STEPS.items()}
    for step in steps.values():
        time_steps(step, data, options.steps)
    speeds = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name in random.sample(list(steps), len(steps)):
            speeds[name].append(time_steps(steps[name], data, options.steps))
    kind = precision.resolve("auto", torch.device("cpu"))
    print(f"{options.threads} threads, torch {torch.__version__}, precision {kind}, {options.rounds} rounds")
    print("| step | images/s | ratio to plain (95 % interval) | peak memory MB |\n|---|---|---|---|")
    for name in steps:
        ratios = [a / b for a, b in zip(speeds[name], speeds["plain"], strict=True)]
        low, high = interval(ratios) or (min(ratios), max(ratios))
        ratio = f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})" if name != "plain" else "1"
        memory = peak_memory_mb(name, options.threads)
        print(f"| {name} | {statistics.median(speeds[name]):.0f} | {ratio} | {memory:.0f} |")


if __name__ == "__main__":
    main()
