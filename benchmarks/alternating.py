"""Trainings in processes of their own that take turns: each trains a few steps when it is asked to.

In every round each arm is asked once, in shuffled order and never two at once; ratios are taken per round. So
a machine that is slower for a minute changes no ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from kdcompress.bench.stats import interval
from kdcompress.progress import Progress

# ---- the process that trains


def answer(seconds):
    """Says how long the steps took, and waits for the next request."""
    print(json.dumps(seconds), flush=True)
    if not sys.stdin.readline():
        os._exit(0)
    return time.perf_counter()


class OnCall(Progress):
    """A progress that answers after every few steps within an epoch, but not in the first one.

    Args:
        first: Steps of the first epoch.
        steps: Steps of an answer.
    """

    def __init__(self, first, steps):
        super().__init__(quiet=True)
        self.first, self.steps = first, steps

    def warn(self, message):
        pass

    @contextmanager
    def bar(self, description, total, done=0):
        self.step, self.began, self.clean = done, None, False
        yield self

    def report(self, text):
        self.clean = False  # an epoch ended, so that these steps are not only steps

    def advance(self, amount=1, note=""):
        self.step += amount
        if self.step < self.first or self.step % self.steps:
            return
        if self.began is not None and self.clean:
            self.began = answer(time.perf_counter() - self.began)
        else:
            self.began = time.perf_counter()
        self.clean = True


def train_plainly(teacher, student, batches, optimiser, steps):
    """Trains by KD as a plain script does, and answers after every few steps."""
    kl, began = nn.KLDivLoss(reduction="batchmean"), None
    for step, (images, labels) in enumerate(_endless(batches), start=1):
        with torch.no_grad():
            soft = (teacher(images) / 4).softmax(1)
        logits = student(images)
        loss = 0.1 * nn.functional.cross_entropy(logits, labels)
        loss = loss + 0.9 * 16 * kl((logits / 4).log_softmax(1), soft)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % steps == 0:
            began = time.perf_counter() if began is None else answer(time.perf_counter() - began)


def _endless(batches):
    while True:
        yield from batches


# ---- the process that asks and compares


class Arm:
    """A training in a process of its own.

    Args:
        script: The benchmark; it is started with `--train ARM --work WORK --threads N`.
        arm: Name of what it trains.
        work: Folder of the pictures and of the cache.
        threads: Threads of the process.
    """

    def __init__(self, script, arm, work, threads):
        self.arm, began = arm, time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, script, "--train", arm, "--work", str(work), "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "KDCOMPRESS_CACHE": str(work / "cache")},
        )  # fmt: skip
        self.read_answer()
        self.start_s = time.perf_counter() - began

    def read_answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.arm} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def seconds(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read_answer()


def parsed(description, arms):
    """Parses the command line, and sets the number of threads.

    Args:
        description: The benchmark's docstring.
        arms: Names of all trainings.
    """
    parser = argparse.ArgumentParser(description=description.split("\n", 1)[0])
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=arms)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def publish(text, out):
    """Prints a page, and writes it into a file if there is one."""
    print(text, end="")
    if out:
        out.write_text(text)


def take_turns(script, arms, work, threads, rounds):
    """Starts every arm and asks each once a round.

    Returns:
        Seconds of each round by arm, and a sentence about compiling.
    """
    processes = [Arm(script, arm, work, threads) for arm in arms]
    times = {arm: [] for arm in arms}
    for number in range(rounds):
        for each in random.sample(processes, len(processes)):
            times[each.arm].append(each.seconds())
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    for each in processes:
        each.process.stdin.close()
        each.process.wait()
    return times, compiling(processes)


def setting(threads, rounds, steps):
    """Names the processor, torch, the threads, and the number of steps."""
    return f"{processor()}, torch {torch.__version__}, {threads} threads, {rounds} rounds of {steps} steps"


def processor():
    """Names the processor, and its matrix instructions for bf16."""
    facts = Path("/proc/cpuinfo").read_text()
    name = facts.partition("model name")[2].partition("\n")[0].strip("\t: ") or "unknown processor"
    found = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in facts]
    return f"{name} ({', '.join(found) or 'no bf16'})"


def ratio(own, base):
    """Formats how many times as fast, the median over the rounds, with its interval."""
    ratios = [b / a for a, b in zip(own, base, strict=True)]
    low, high = interval(ratios) or (min(ratios), max(ratios))
    return f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def table(times, floors, images):
    """Builds the table; a compiled arm is compared with compiled plain training.

    Args:
        times: Seconds of each round by arm.
        floors: Arms to compare with, by the title of their column.
        images: Images of a round.
    """
    floors = {title: arm for title, arm in floors.items() if arm in times}
    lines = [f"| | images/s | {' | '.join(f'to {title}' for title in floors)} |"]
    lines.append("|---" * (2 + len(floors)) + "|")
    for arm, seconds in times.items():
        cells = []
        for floor in floors.values():
            own = f"{floor} compiled"
            base = own if arm.endswith("compiled") and own in times else floor
            cells.append("" if base == arm else ratio(seconds, times[base]))
        rate = images / statistics.median(seconds)
        lines.append(f"| {arm} | {rate:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compiling(arms):
    """Tells how many seconds compiling took, of each arm that was also run without."""
    starts = {each.arm: each.start_s for each in arms}
    found = [
        f"{arm} {starts[f'{arm} compiled'] - starts[arm]:.0f} s"
        for arm in starts
        if f"{arm} compiled" in starts and arm != "cached"
    ]
    return f"Compiling: {', '.join(found)}.\n" if found else ""
