"""Step time of kd on two gloo processes: this checkout against another, and both ways of averaging gradients.

    python benchmarks/two_processes.py [--against DIR] [--rounds 15] [--steps 3]

Each way is a pair of processes of one thread that share global batches of 64 images of 32x32 pixels, through
resnet20 (teacher) and resnet8x4 (student). The pairs take turns in shuffled order within every round, all
others waiting, and the ratio is taken per round. "again" is a second pair of the first way: its ratio shows
what this machine makes of no difference at all.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
BATCH, SIDE, CLASSES = 64, 32, 100
WARM_UP = 3
"""Steps that are not timed: DistributedDataParallel arranges its buckets in the first two."""


def make_step(averaging):
    """The product's step in one of two processes, from whichever checkout is imported."""
    import torch

    from kdcompress.data.batch import Batch, DataInfo, View
    from kdcompress.methods.base import find_method
    from kdcompress.networks import teacher as teachers
    from kdcompress.networks.build import build
    from kdcompress.networks.networks import Networks
    from kdcompress.networks.tapped import Tapped
    from kdcompress.recipe import OptimSection, TrainSection
    from kdcompress.train import minimiser, precision
    from kdcompress.train.job import Job
    from kdcompress.train.processes import join

    torch.set_num_threads(1)
    processes = join("cpu")

    def tapped(name):
        torch.manual_seed(0)
        network = build(f"cifar/{name}", num_classes=CLASSES, channels=3, image_size=(SIDE, SIDE))
        made = Tapped(
            network, f"cifar/{name}", image_size=(SIDE, SIDE), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3
        )
        made.precision = precision.dtype(precision.resolve("auto", processes.device))
        return made

    # Its name before version 0.2 was Teacher.
    frozen = getattr(teachers, "FrozenTeacher", None) or teachers.Teacher
    student, teacher = tapped("resnet8x4"), frozen(tapped("resnet20"))
    cls = find_method("kd")
    info = DataInfo(CLASSES, torch.zeros(1, dtype=torch.int64), (SIDE, SIDE), 3)
    method = cls(cls.Config(), Networks(student, teacher), info)
    if averaging == "all-reduce":
        minimiser.needs_no_more_than_ddp = lambda method: False
    folder = Path(tempfile.gettempdir())
    job = Job("student", folder, TrainSection(epochs=1), OptimSection(lr=0.05), 1, False, "")
    minimise = minimiser.Minimiser(method, method.parameter_sets(), job, processes)
    student.train_mode(True)
    rows = BATCH // processes.world
    images = torch.rand(rows, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    view = View(images, torch.arange(rows), 0)
    batch = Batch((view,), torch.randint(CLASSES, (rows,)), view.indices)

    def step():
        minimise.begin(0, 0, 1)
        method.step(batch, minimise)

    return step, processes


def work(averaging):
    """Runs as many steps as each line of standard input says, and prints their seconds."""
    import kdcompress

    step, processes = make_step(averaging)
    print(Path(kdcompress.__file__).parents[1], flush=True)
    for line in sys.stdin:
        processes.barrier()
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        processes.barrier()
        print(time.perf_counter() - began, flush=True)


class Pair:
    """Two processes that train together when they are told to."""

    def __init__(self, checkout, averaging):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--work", averaging],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip
        for process in self.processes:
            imported = Path(process.stdout.readline().strip())
            if imported != checkout:
                raise SystemExit(f"{checkout} was asked for, and {imported} was imported")

    def seconds_per_step(self, steps):
        for process in self.processes:
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        return max(float(process.stdout.readline()) for process in self.processes) / steps

    def end(self):
        for process in self.processes:
            process.stdin.close()
            process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=3, help="per round")
    parser.add_argument("--work", choices=("ddp", "all-reduce"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    from kdcompress.bench.stats import paired_ratio

    ways = {
        "DistributedDataParallel": (HERE, "ddp"),
        "again": (HERE, "ddp"),
        "all-reduce": (HERE, "all-reduce"),
    }
    if options.against:
        other = options.against.resolve()
        ways["the other checkout"] = (other, "ddp")
    load = os.getloadavg()[0]
    pairs = {name: Pair(*way) for name, way in ways.items()}
    try:
        for pair in pairs.values():
            pair.seconds_per_step(WARM_UP)
        seconds = {name: [] for name in pairs}
        for _ in range(options.rounds):
            for name in random.sample(list(pairs), len(pairs)):
                seconds[name].append(pairs[name].seconds_per_step(options.steps))
    finally:
        for pair in pairs.values():
            pair.end()
    print(
        f"{options.rounds} rounds of {options.steps} steps; load before: {load:.1f} on {os.cpu_count()} cores"
    )
    print("| way | step ms | step time against the first (95 % interval) |\n|---|---|---|")
    first = seconds["DistributedDataParallel"]
    for name, own in seconds.items():
        centre, ends = paired_ratio(own, first)  # how many times as long its step takes
        between = f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
        ratio = "1" if own is first else f"{centre:.2f}{between}"
        print(f"| {name} | {1000 * statistics.median(own):.0f} | {ratio} |")


if __name__ == "__main__":
    main()
