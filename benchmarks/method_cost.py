"""What a training step of each method costs: its time and its peak memory, as ratios to `kd`.

    python benchmarks/method_cost.py [--threads 1] [--rounds 9] [--methods crd sskd ...] [--out FILE]
    python benchmarks/method_cost.py --control none --methods dml mcl lmcl:meta_every=99999 lmcl:meta_every=1

Every method that `kdcompress methods` lists, with its defaults (crd with 16,384 negatives, sskd with four
views), takes batches of 64 of 50,000 images of 32×32 pixels through resnet32x4 (teacher) and resnet8x4
(student) by the product's own loop: loader with augmentation, `Trainer`, `Minimiser`. A step is timed from
one call of the progress bar to the next, so that its batch, its losses and what is updated after it are all
in it. crd draws its negatives on the device, within the step and not in the loader: that is in its time too.

Each method runs in a process of its own, beside one of `kd` that is there throughout. In each round both take
a step, in shuffled order and never at once, and the ratio is of the two: a slow machine slows both. The row
of kd is a second kd beside the first, and shows what the machine does to a ratio of 1. Of a method with
several phases each phase is timed. With fewer than six rounds the range stands in place of the interval. Peak
memory is a process's greatest resident set above what it held before the networks were built, and is of all
phases together.

`NAME:KEY=VALUE` sets an option of a method. The ratio per network is the ratio divided by the number of whole
networks that train: with `--control none`, a step of two networks against two steps of plain training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml

from kdcompress import discovery
from kdcompress.bench.stats import interval
from kdcompress.data.batch import DataInfo
from kdcompress.data.loader import TrainingLoader
from kdcompress.data.orders import batch_order
from kdcompress.data.source import MemorySource
from kdcompress.methods.base import find_method
from kdcompress.networks.build import build
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.recipe import OptimSection, TrainSection
from kdcompress.tasks import CLASSIFICATION
from kdcompress.train import precision
from kdcompress.train.job import Job
from kdcompress.train.journal import Journal
from kdcompress.train.processes import Processes
from kdcompress.train.trainer import Trainer

BATCH, SIDE, CLASSES, IMAGES = 64, 32, 100, 50_000
STUDENT, TEACHER, CONTROL = "cifar/resnet8x4", "cifar/resnet32x4", "kd"
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
CPU = torch.device("cpu")


# ---- the process that trains


class Short:
    """A loader whose epochs end after so many batches."""

    def __init__(self, loader, steps):
        self.loader, self.steps, self.batch_size = loader, min(steps, loader.steps), loader.batch_size

    def epoch(self, epoch, start_step=0):
        return itertools.islice(self.loader.epoch(epoch, start_step), self.steps - start_step)


class OnCall:
    """A progress bar that says how long each step took, and waits to be told to take the next."""

    def __init__(self, base_kb):
        self.base_kb, self.began = base_kb, math.nan

    @contextmanager
    def bar(self, description, total, done=0):
        self.wait()
        yield self

    def advance(self, amount=1, note=""):
        seconds = time.perf_counter() - self.began
        print(json.dumps({"seconds": seconds, "mb": (status("VmHWM") - self.base_kb) / 1024}), flush=True)
        self.wait()

    def wait(self):
        if not sys.stdin.readline():
            os._exit(0)  # nobody wants another step
        self.began = time.perf_counter()


def status(key):
    """A figure of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def configured(text):
    """Returns the class and the configuration of `NAME` or `NAME:KEY=VALUE,KEY=VALUE`."""
    name, _, options = text.partition(":")
    cls = find_method(name)
    pairs = (option.partition("=") for option in filter(None, options.split(",")))
    return cls, cls.Config.model_validate({key: yaml.safe_load(value) for key, _, value in pairs})


def networks_of(text):
    """Returns the number of whole networks that train."""
    cls, config = configured(text)
    return 1 + (cls.needs(config).peers or 0)


def train(name, steps):
    """Trains by a method, a step for each line on standard input."""
    generator = torch.Generator().manual_seed(0)
    source = MemorySource(
        torch.randint(256, (IMAGES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator),
        torch.randint(CLASSES, (IMAGES,), generator=generator),
    )
    base_kb = status("VmRSS")
    cls, config = configured(name)
    needs = cls.needs(config)
    torch.manual_seed(0)
    peers = tuple(tapped(STUDENT) for _ in range(needs.peers or 0))
    networks = Networks(
        tapped(STUDENT, needs.task),
        FrozenTeacher(tapped(TEACHER)) if needs.teacher else None,
        peers,
    )
    method = cls(config, networks, DataInfo(CLASSES, source.labels, (SIDE, SIDE), 3, batch_size=BATCH))
    loader = TrainingLoader(
        source, batch_size=BATCH, views=needs.views, seed=0, augment=needs.augment or "crop_flip", device=CPU,
        order=batch_order(needs.order, source.labels, batch_size=BATCH, seed=0),
    )  # fmt: skip
    phases = [phase.name for phase in method.phases()]
    with tempfile.TemporaryDirectory() as folder:
        section = TrainSection(epochs=len(phases), checkpoint_minutes=1e9)
        job = Job("student", Path(folder), section, OptimSection(lr=0.05), len(phases), False, "")
        trainer = Trainer(
            method, Short(loader, steps), None, job, Processes(0, 1, CPU), Journal(None), OnCall(base_kb)
        )
        print(json.dumps({"phases": phases, "base_mb": base_kb / 1024}), flush=True)
        trainer.run()


def tapped(model, task=CLASSIFICATION):
    classes = CLASSES if task.has_classes else 0
    network = build(model, num_classes=classes, channels=3, image_size=(SIDE, SIDE))
    made = Tapped(network, model, image_size=(SIDE, SIDE), channels=3, mean=MEAN, std=STD, task=task)
    made.precision = precision.dtype(precision.resolve("auto", CPU))
    return made


# ---- the process that asks and compares


class Asked:
    """A method in a process of its own, that takes a step when it is asked to."""

    def __init__(self, name, threads, steps):
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--train", name, "--threads", str(threads), "--steps", str(steps)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        started = self._answer()
        self.phases, self.base_mb = started["phases"], started["base_mb"]
        self.mb = 0.0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.wait()

    def step(self):
        """The seconds that one more step took."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.mb = answer["mb"]
        return answer["seconds"]

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a process ended with exit code {self.process.wait()}")
        return json.loads(line)


def measure(name, control, options):
    """Rows of (what, [seconds of a step], [its ratio to one of the control], peak MB)."""
    rows = []
    with Asked(name, options.threads, options.rounds + 1) as asked:
        for phase in asked.phases:
            for each in (asked, control):
                each.step()  # the first of a phase, in which its optimiser is made, is not timed
            seconds, ratios = [], []
            for _ in range(options.rounds):
                both = {}
                for each in random.sample([asked, control], 2):
                    both[each] = each.step()
                seconds.append(both[asked])
                ratios.append(both[asked] / both[control])
            rows.append((f"{name}, {phase}" if len(asked.phases) > 1 else name, seconds, ratios))
        return [(*row, asked.mb) for row in rows]


def table(rows, reference_mb, control):
    lines = [
        f"| method | step ms | ratio to {control} (95 % interval) | ratio per network | peak memory MB | "
        f"ratio to {control} | ratio per network |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, seconds, ratios, mb in rows:
        low, high = interval(ratios) or (min(ratios), max(ratios))
        networks = networks_of(name.partition(", ")[0])
        lines.append(
            f"| {name} | {1000 * statistics.median(seconds):.0f} | {statistics.median(ratios):.2f} "
            f"({low:.2f} to {high:.2f}) | {statistics.median(ratios) / networks:.2f} | {mb:.0f} | "
            f"{mb / reference_mb:.2f} | {mb / reference_mb / networks:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each phase")
    parser.add_argument("--methods", nargs="+", help="instead of all: NAME or NAME:KEY=VALUE")
    parser.add_argument("--control", default=CONTROL, help="method that the others are compared with")
    parser.add_argument("--out", type=Path, help="where the table goes, besides the terminal")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.train:
        train(options.train, options.steps)
        return
    began = time.monotonic()
    names = list(dict.fromkeys([options.control, *(options.methods or discovery.names("method"))]))
    rows = []
    with Asked(options.control, options.threads, IMAGES // BATCH) as control:
        for name in names:
            rows += measure(name, control, options)
            said = f"ratio {statistics.median(rows[-1][2]):.2f}, {rows[-1][3]:.0f} MB"  # for whoever stops it
            print(f"{name}: {time.monotonic() - began:.0f} s, {said}", file=sys.stderr, flush=True)
        base_mb = control.base_mb
    reference_mb = next(mb for name, _, _, mb in rows if name == options.control)
    said = (
        f"{options.threads} threads, torch {torch.__version__}, precision {precision.resolve('auto', CPU)}, "
        f"{options.rounds} rounds; {base_mb:.0f} MB before the networks are built\n\n"
        f"{table(rows, reference_mb, options.control)}\n"
    )
    print(said, end="")
    if options.out:
        options.out.write_text(said)


if __name__ == "__main__":
    main()
