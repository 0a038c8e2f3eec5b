"""A training step's operations, waits and times: five minutes on any CUDA machine, and it runs on a CPU too.

    python benchmarks/gpu.py [--device cuda|cpu] [--seconds 8] [--no-compile]

Prints one Markdown table. Each row is a method on a pair of networks, with the product's own loader, method,
`Minimiser` and moving average:

- operations: those that torch dispatches in a step and that are no views, backward included: about the kernel
  launches of a GPU. Counted as on CUDA, where the checks for finite values are read late.
- waits: times that the host waited for the device in a step (`torch.cuda.set_sync_debug_mode`); CUDA only.
- data, teacher, student: milliseconds of a step for the batch, for the teacher's forward pass, for the rest.
- without teacher, compiled, CUDA graphs: the rate of whole steps over that of the default step. The first is
  the most that a cache of the teacher's outputs can bring. Rounds are interleaved, and the median of the
  rounds counts.

`--operations` prints the count alone, also of another checkout:
PYTHONPATH=CHECKOUT python benchmarks/gpu.py --operations
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdcompress.data.batch import DataInfo
from kdcompress.data.loader import TrainingLoader
from kdcompress.data.source import MemorySource
from kdcompress.methods.base import find_method
from kdcompress.networks.build import build
from kdcompress.networks.compiled import graphed_batch
from kdcompress.networks.networks import Networks
from kdcompress.networks.tapped import Tapped
from kdcompress.networks.teacher import FrozenTeacher
from kdcompress.recipe import OptimSection, TrainSection
from kdcompress.train import minimiser, precision
from kdcompress.train.average import Average
from kdcompress.train.job import Job
from kdcompress.train.minimiser import Minimiser
from kdcompress.train.processes import Processes


@dataclass(frozen=True)
class Case:
    """A method on a pair of networks."""

    method: str
    teacher: str
    student: str
    side: int
    batch: int
    classes: int = 100
    images: int = 2048

    def __str__(self) -> str:
        teacher, student = (name.split("/")[1] for name in (self.teacher, self.student))
        return f"{self.method}, {teacher} → {student}, {self.side} px, batch {self.batch}"


CASES = (
    Case("kd", "cifar/resnet32x4", "cifar/resnet8x4", 32, 64),
    Case("dkd", "cifar/resnet32x4", "cifar/resnet8x4", 32, 64),
    Case("at", "cifar/resnet32x4", "cifar/resnet8x4", 32, 64),
    Case("kd", "torchvision/resnet34", "torchvision/resnet18", 224, 64, images=512),
)
TINY = (Case("kd", "cifar/resnet14", "cifar/resnet8", 8, 8, classes=4, images=32),)


class Recorded:
    """A teacher whose outputs of one batch are given again, as from a cache that costs nothing."""

    def __init__(self, teacher):
        self._teacher, self._read = teacher, {}

    def __getattr__(self, name):
        return getattr(self._teacher, name)

    def __call__(self, images, want=frozenset({"logits"})):
        if want not in self._read:
            self._read[want] = self._teacher(images, want)
        return self._read[want]


class Steps:
    """The product's training step, on random images."""

    def __init__(self, case, device, *, recorded=False, compiled=False, graphs=False):
        self.case, self.device = case, device
        student, teacher = self._tapped(case.student), FrozenTeacher(self._tapped(case.teacher))
        teacher.to(device)
        cls = find_method(case.method)
        generator = torch.Generator().manual_seed(0)
        shape = (case.images, 3, case.side, case.side)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        labels = torch.arange(case.images) % case.classes
        info = DataInfo(case.classes, labels, (case.side, case.side), 3, batch_size=case.batch)
        networks = Networks(student, Recorded(teacher) if recorded else teacher)
        self.method = cls(cls.Config(), networks, info).to(device)
        train, optim = TrainSection(epochs=1, ema=0.999), OptimSection(lr=0.05)
        job = Job("student", Path(tempfile.mkdtemp()), train, optim, 1, False, "")
        self.minimise = Minimiser(self.method, self.method.parameter_sets(), job, Processes(0, 1, device))
        self.average = Average(student.network, 0.999)
        self.method.on_phase_start(self.method.phases()[0].name, resumed=False)
        self.method.on_epoch_start(0, 1)
        student.train_mode(True)
        self.graphs = graphs
        if compiled:
            student.compile(graphs=graphs)
            teacher.compile(graphs=graphs)
        self.teacher, self.want = teacher, cls.needs(cls.Config()).read_of_teacher
        source = MemorySource(images, labels, preset="crop_flip")
        self.loader = TrainingLoader(
            source, batch_size=case.batch, seed=0, augment="crop_flip", device=device
        )
        self.batches, self.count = self._endless(), 0

    def _tapped(self, name):
        case = self.case
        torch.manual_seed(0)
        network = build(name, num_classes=case.classes, channels=3, image_size=(case.side, case.side))
        size = (case.side, case.side)
        made = Tapped(network, name, image_size=size, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
        made.precision = precision.dtype(precision.resolve("auto", self.device))
        return made.to(self.device)

    def _endless(self):
        epoch = 0
        while True:
            yield from self.loader.epoch(epoch)
            epoch += 1

    def data(self):
        """Takes a batch."""
        return next(self.batches)

    def forward(self):
        """Runs the teacher's forward pass alone."""
        self.batch = getattr(self, "batch", None) or self.data()
        self.teacher(self.batch.images, self.want)

    def __call__(self):
        """Runs a whole step."""
        batch = self.data()
        self.minimise.begin(self.count, 0, 1)
        with graphed_batch(self.graphs):
            self.method.step(batch, self.minimise)
        self.method.after_step(batch)
        self.average.update(self.count)
        self.count += 1
        if self.count % 25 == 0 and hasattr(self.minimise, "check"):
            self.minimise.check()


class Operations(TorchDispatchMode):
    """Counts dispatched operations that are no views."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function._schema.name
        if not any(
            a.alias_info is not None and not a.alias_info.is_write for a in function._schema.arguments
        ):
            self.counts[packet] += packet not in {"aten::detach", "aten::empty", "aten::empty_like"}
        return function(*args, **(kwargs or {}))


def operations(case):
    """Counts the operations of a step on the CPU, with the checks of CUDA: of the batch, and of all."""
    late = getattr(minimiser, "reads_late", None)
    minimiser.reads_late = lambda device: True
    try:
        steps = Steps(case, torch.device("cpu"))
        steps()  # makes optimiser states and the draws of an epoch
        with Operations() as batch:
            steps.data()
        with Operations() as whole:
            steps()
    finally:
        minimiser.reads_late = late
    return batch.counts.total(), whole.counts.total()


def waits(steps, count=20):
    """Counts the waits for the device per step."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(count):
                steps()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught) / count


def seconds_each(work, device, count):
    """Times calls, with the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / count


def measure(case, device, seconds, compiles, rounds=5):
    """Measures a row of the table."""
    steps = Steps(case, device)
    ways = {"whole": steps, "data": steps.data, "teacher": steps.forward}
    ways["without teacher"] = Steps(case, device, recorded=True)
    if compiles:
        ways["compiled"] = Steps(case, device, compiled=True)
        if device.type == "cuda":
            ways["CUDA graphs"] = Steps(case, device, compiled=True, graphs=True)
    for work in ways.values():
        for _ in range(3):
            work()
    calls = max(1, round(seconds / rounds / len(ways) / seconds_each(steps, device, 2)))
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            times[name].append(seconds_each(work, device, calls))
    ms = {name: 1e3 * statistics.median(each) for name, each in times.items()}
    per_round = zip(*(times[n] for n in ("whole", "without teacher")), strict=True)
    ratio = statistics.median(whole / other for whole, other in per_round)
    cells = [
        f"{case}", str(operations(case)[1]), f"{waits(steps):g}" if device.type == "cuda" else "–",
        *(f"{ms[name]:.2f}" for name in ("data", "teacher")),
        f"{ms['without teacher'] - ms['data']:.2f}", f"{case.batch / ms['whole'] * 1e3:,.0f}", f"{ratio:.2f}",
    ]  # fmt: skip
    return [*cells, *(_gain(times, name) for name in ("compiled", "CUDA graphs"))]


def _gain(times, name):
    """Returns the median of the rounds' ratios to a whole default step."""
    if name not in times:
        return "–"
    return f"{statistics.median(a / b for a, b in zip(times['whole'], times[name], strict=True)):.2f}"


HEADS = (
    "step", "operations", "waits", "data, ms", "teacher, ms", "student, ms", "images/s", "without teacher",
    "compiled", "CUDA graphs",
)  # fmt: skip


def main(arguments=None):
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=8, help="for the rounds of a row")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled step")
    parser.add_argument("--operations", action="store_true", help="count operations alone")
    parser.add_argument("--tiny", action="store_true", help="one row of tiny networks")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    cases = TINY if options.tiny else CASES
    if options.operations:
        print("| step | of the batch | of the whole step |\n|---|---|---|")
        for case in cases:
            print(f"| {case} |", " | ".join(map(str, operations(case))), "|", flush=True)
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    kind = precision.resolve("auto", device)
    print(f"{name}, torch {torch.__version__}, {kind}, {torch.get_num_threads()} threads\n")
    print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
    for case in cases:
        print(
            "| " + " | ".join(measure(case, device, options.seconds, not options.no_compile)) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
