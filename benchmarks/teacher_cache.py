"""Shows that the cache of a teacher's outputs is exact: the student is the same, whatever the cache holds.

    python benchmarks/teacher_cache.py [--damages 200] [--only hits rows ...] [--teacher cifar/resnet14]

A small teacher is trained once on the digits of the recipe `quickstart`, and every run loads its weights.
Runs are those of `kdcompress distill` up to the trained student. The program exits with 1 if a claim fails.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from kdcompress import pipeline
from kdcompress.networks.activations import LOGITS
from kdcompress.networks.output_cache.cached_teacher import CachedTeacher
from kdcompress.networks.output_cache.rows import RowFiles
from kdcompress.progress import Progress
from kdcompress.run.opening import Request

VIEWS, EPOCHS, BATCH = 2, 4, 120
HELD_OUT = 57
"""Leaves 1,560 = 13 * 120 training images, so that every row is read in every epoch."""
SETTINGS = (
    "train.threads=1", "optim.warmup=0", "bench.rounds=1", "export.formats=[safetensors]",
    "teacher.epochs=4", "teacher.min_top1=0", f"teacher.cache.views={VIEWS}",
)  # fmt: skip
WHOLE_BATCHES = (f"data.batch_size={BATCH}", f"data.held_out={HELD_OUT}", f"train.epochs={EPOCHS}")
PRECISIONS = ("bf16", "fp32")
OTHER_BATCHES = (104, 39, 12)
"""Each divides 1,560."""
OTHER_PROCESSOR = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Lets torch round as on a processor without AVX-512."""
MOST_PROBABILITY = 2.0**-8
MOST_WEIGHT = 1e-4
FINE_TUNING_RATE = 0.002
SUM_BYTES = 4
"""A row of a file is a checksum, then the outputs."""


@dataclass(frozen=True)
class Trained:
    """A student, and how many teacher outputs were computed and read for it."""

    sha256: str
    computed: int
    read: int
    cached: CachedTeacher
    ids: torch.Tensor

    @property
    def counts(self):
        return f"{self.computed:,} computed, {self.read:,} read"


@dataclass(frozen=True)
class Case:
    """A comparison that belongs to a claim, and its result."""

    compared: str
    found: str
    holds: bool


class Trainings:
    """Trains students in this process, and notes what the cache says.

    Args:
        work: Holds the runs, the caches and the teacher.
        model: `FAMILY/NAME` of the teacher.
    """

    def __init__(self, work, model):
        self.work, self.teacher, self.model = work, work / "teacher.safetensors", f"teacher.model={model}"
        os.environ["KDCOMPRESS_CACHE"] = str(work / "cache")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # Export and proof are left out: the student that they would take is what is compared.
        pipeline.deliver, pipeline.report = self._keep_student, lambda *arguments, **options: {}
        self._open_cache, pipeline.cached_outputs = pipeline.cached_outputs, self._note_cache
        self.distill("teacher", "train.epochs=1", "teacher.cache=off", weights=False)
        shutil.copy(work / "runs" / "teacher" / "checkpoints" / "teacher.safetensors", self.teacher)

    def settings(self, *others, cache=None):
        """Returns the settings of a run with the shared teacher."""
        own = () if cache is None else (f"teacher.cache.folder={self.work / 'caches' / cache}",)
        return (*SETTINGS, self.model, f"teacher.weights={self.teacher}", *own, *others)

    def distill(self, name, *settings, cache=None, method=None, progress=None, weights=True):
        """Trains a student in WORK/runs/NAME with the cache WORK/caches/CACHE."""
        folder = self.work / "runs" / name
        overrides = self.settings(*settings, cache=cache) if weights else (*SETTINGS, self.model, *settings)
        request = Request("quickstart", out=folder, overrides=overrides, method=method)
        with open(self.work / "stderr", "a") as log, contextlib.redirect_stderr(log):
            pipeline.distill(request, progress or Progress(quiet=True))
        content = (folder / "student.safetensors").read_bytes()
        if not weights:
            return None
        cached, ids = self._noted
        return Trained(hashlib.sha256(content).hexdigest(), cached.computed, cached.read, cached, ids)

    def distill_by_command(self, name, *settings, cache, processes=1, environment=None):
        """Runs `kdcompress distill` to its end, in processes of its own.

        Returns:
            The student's weights, and the numbers of teacher outputs that were computed and read.
        """
        folder, program = self.work / "runs" / name, [sys.executable, "-m"]
        if processes > 1:
            program += ["torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", "-m"]
        program += ["kdcompress", "distill", "--recipe", "quickstart", "--out", str(folder)]
        program += [w for each in self.settings(*settings, cache=cache) for w in ("--set", each)]
        own = {**os.environ, **(environment or {})}
        done = subprocess.run(program, env=own, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("Teacher outputs: ")]
        words = line.replace(",", "").split()
        return safetensors.torch.load_file(folder / "student.safetensors"), int(words[2]), int(words[8])

    def _keep_student(self, run, start, method, outcome, *others):
        state = {key: value.contiguous() for key, value in outcome.state.items()}
        safetensors.torch.save_file(state, run.folder / "student.safetensors")

    @contextlib.contextmanager
    def _note_cache(self, run, teacher):
        with self._open_cache(run, teacher) as answering:
            self._noted = answering, run.data.train.ids
            yield answering

    def key(self, cache):
        """Returns the name of a cache's folder, the hash of what its outputs depend on."""
        (name,) = {file.parent.name for file in self.rows(cache).values()}
        return name

    def rows(self, cache):
        """Returns the files of a cache's rows by name."""
        found = (self.work / "caches" / cache).glob("*/*.rows")
        return {file.name: file for file in sorted(found)}


class BetweenEpochs(Progress):
    """Calls a function after some epochs of the student, while the training goes on."""

    def __init__(self, epochs, act):
        super().__init__(quiet=True)
        self._epochs, self._act = epochs, act

    @contextlib.contextmanager
    def bar(self, description, total, done=0):
        self._student, self._epoch = description.startswith("student"), 0
        yield self

    def advance(self, amount=1, note=""):
        pass

    def report(self, text):
        self._epoch += 1
        if self._student and self._epoch in self._epochs:
            self._act()


def hits(trainings, options):
    """Compares students of one run whose rows are there, missing, or taken away while it trains."""
    draw, found = random.Random(0), []
    for precision in PRECISIONS:
        settings, whole = (*WHOLE_BATCHES, f"train.precision={precision}"), f"whole-{precision}"
        untouched = trainings.distill(whole, *settings, cache=whole)
        views, every = VIEWS * len(untouched.ids), EPOCHS * len(untouched.ids)
        right = untouched.computed == views
        found.append(Case(f"{precision}: an untouched run that fills", untouched.counts, right))
        # Each cut case fills a cache of its own. The last numbers: least and most outputs to be computed.
        for number, (name, share, epochs, least, most) in enumerate(
            (
                ("all rows there from the start", None, (), 0, 0),
                ("cut to nothing after epoch 2", lambda: 0, (2,), every, every),
                ("cut at random after epoch 2", draw.random, (2,), views + 1, every),
                ("cut at random after epochs 1, 2 and 3", draw.random, (1, 2, 3), views + 1, every),
                ("deleted after epoch 2, while its files are open", None, (2,), views, views),
            )
        ):
            cache = f"cut{number}-{precision}" if epochs else whole
            between = BetweenEpochs(epochs, functools.partial(_cut, trainings, cache, share))
            run = trainings.distill(f"hits{number}-{precision}", *settings, cache=cache, progress=between)
            same = run.sha256 == untouched.sha256
            said = f"{'same' if same else 'another'} SHA-256; {run.counts}"
            found.append(Case(f"{precision}: {name}", said, same and least <= run.computed <= most))
    return (
        f"Misses and hits of one run are the same bits: `student.safetensors` after {EPOCHS} epochs of "
        f"{VIEWS} views, against an untouched run",
        found,
    )


def _cut(trainings, cache, share):
    """Cuts each file of rows to a share of its length; None: deletes the whole cache."""
    if share is None:
        shutil.rmtree(trainings.work / "caches" / cache)
        return
    for file in trainings.rows(cache).values():
        os.truncate(file, int(share() * file.stat().st_size))


def rows(trainings, options):
    """Compares all rows of a cache with those that runs in other batches, and on another processor, fill."""
    found = []
    for precision in PRECISIONS:
        settings = ("train.epochs=2", f"data.held_out={HELD_OUT}", f"train.precision={precision}")
        caches = {f"against {batch}": f"batch {batch} {precision}" for batch in (BATCH, *OTHER_BATCHES)}
        filled = [
            trainings.distill(cache, f"data.batch_size={batch}", *settings, cache=cache)
            for batch, cache in zip((BATCH, *OTHER_BATCHES), caches.values(), strict=True)
        ]
        caches["against the same with the instructions of AVX2 alone"] = other = f"processor {precision}"
        own = (f"data.batch_size={BATCH}", *settings)
        _, computed, _ = trainings.distill_by_command(other, *own, cache=other, environment=OTHER_PROCESSOR)
        first = filled[0]
        count = VIEWS * len(first.ids)
        assert computed == count
        assert all(each.computed == count for each in filled)
        (mine, probabilities), *others = (_stored(trainings, cache, first) for cache in caches.values())
        for name, (theirs, their_probabilities) in zip(list(caches)[1:], others, strict=True):
            apart = (probabilities - their_probabilities).abs().amax(1)
            worst, above = float(apart.max()), int((apart > MOST_PROBABILITY).sum())
            bits = int((mine != theirs).any(1).sum())
            said = f"{worst:.2g}; {bits:,} of {count:,} rows have other bits, {above:,} are above 2⁻⁸"
            right = worst <= MOST_PROBABILITY
            if trainings.key(caches[name]) != trainings.key(next(iter(caches.values()))):
                said, right = f"{said}; it has a cache of its own", True
            found.append(Case(f"{precision}: batches of {BATCH}, {name}", said, right))
    return (
        f"Rows of another run differ from recomputed ones by at most 2⁻⁸ ({MOST_PROBABILITY:.2g}) in "
        "probability: largest difference over all rows of two runs' caches",
        found,
    )


def _stored(trainings, cache, run):
    """Returns all rows of a cache and their probabilities; `run` has read or filled one of the same form."""
    views = []
    for name, file in trainings.rows(cache).items():
        with contextlib.closing(RowFiles(file.parent, run.cached.codec.width)) as files:
            stored, present = files.read(name, run.ids.numpy())
        assert present.all()
        views.append(torch.from_numpy(stored))
    assert len(views) == VIEWS
    every = torch.cat(views)
    return every, run.cached.codec.decode(every, LOGITS).logits.softmax(1)


def shared(trainings, options):
    """Counts teacher outputs that a second seed and a second method compute."""
    # The recipe's own batches, which leave some images out of every epoch, others with another seed.
    settings = (f"train.epochs={EPOCHS}",)
    first = trainings.distill("kd 0", *settings, cache="shared")
    found = [Case("kd, seed 0, which fills", first.counts, first.computed > 0)]
    for name, seed, method in (("kd, seed 1", 1, None), ("dkd, seed 0", 0, "dkd")):
        run = trainings.distill(name, f"seed={seed}", *settings, cache="shared", method=method)
        found.append(Case(name, run.counts, run.computed == 0 and run.read > 0))
    return "Two seeds and two methods share a cache: teacher outputs that a run computes", found


def processes(trainings, options):
    """Compares the weights of students that one and two processes trained, with batch norm frozen."""
    trainings.distill("student", *WHOLE_BATCHES, "train.epochs=8", cache="student")
    start = trainings.work / "runs" / "student" / "student.safetensors"
    # A fine-tuning: from random weights and at a usual rate, a frozen batch norm amplifies any rounding.
    settings = (
        *WHOLE_BATCHES, "train.precision=fp32", "train.freeze_bn=true", "train.ship=last",
        f"student.weights={start}", f"optim.lr={FINE_TUNING_RATE}",
    )  # fmt: skip
    weights, computed, read = trainings.distill_by_command("one", *settings, cache="one")
    before = safetensors.torch.load_file(start)
    moved = max(_apart(weights[key], before[key]) for key in weights)
    found = [
        Case(
            "one process fills",
            f"weights moved by {moved:.2g}; {computed:,} computed, {read:,} read",
            moved > 0,
        )
    ]
    of_views, every = computed, EPOCHS * computed // VIEWS
    for name, count, cache, computes in (
        ("two processes fill their own cache", 2, "two", of_views),
        ("two processes read that of one", 2, "one", 0),
        ("one process reads that of two", 1, "two", 0),
    ):
        others, computed, read = trainings.distill_by_command(name, *settings, cache=cache, processes=count)
        assert others.keys() == weights.keys()
        apart = max(_apart(weights[key], others[key]) for key in weights)
        right = apart <= MOST_WEIGHT and computed == computes and computed + read == every
        found.append(Case(name, f"{apart:.2g}; {computed:,} computed, {read:,} read", right))
    rounded, _, _ = trainings.distill_by_command("avx2", *settings, cache="one", environment=OTHER_PROCESSOR)
    apart = max(_apart(weights[key], rounded[key]) for key in weights)
    found.append(Case("to compare: one process with the instructions of AVX2 alone", f"{apart:.2g}", True))
    return (
        "Two processes give one process's student: weights after "
        f"{EPOCHS} epochs of fine-tuning (fp32, batch norm frozen, rate {FINE_TUNING_RATE}), largest "
        "difference relative to the largest value of its tensor, at most 1e-4",
        found,
    )


def _apart(one, other):
    scale = float(one.abs().amax()) or 1.0
    return float((one.double() - other.double()).abs().amax()) / scale


def damages(trainings, options):
    """Trains on damaged copies of a cache."""
    settings = (
        f"data.batch_size={BATCH}", f"data.held_out={HELD_OUT}", f"train.epochs={VIEWS}",
        f"train.evaluate_every={VIEWS}", "train.bn_statistics=off",
    )  # fmt: skip
    first = trainings.distill("damages", *settings, cache="damages")
    sound = trainings.work / "caches" / "damages"
    reading = trainings.distill("damages read", *settings, cache="damages")
    assert reading.sha256 == first.sha256
    assert reading.computed == 0
    draw, numbers, step = random.Random(0), first.ids.tolist(), SUM_BYTES + first.cached.codec.width
    right = counted = whole = recomputed = 0
    kinds = {}
    for number in range(options.damages):
        copy = trainings.work / "caches" / "damaged"
        shutil.copytree(sound, copy)
        kind, lost = _damage(copy, draw, numbers, step)
        run = trainings.distill("damaged", *settings, cache="damaged")
        right += run.sha256 == first.sha256
        counted += run.computed == lost
        whole += _contents(copy) == _contents(sound)
        recomputed += run.computed
        kinds[kind] = kinds.get(kind, 0) + 1
        if run.sha256 != first.sha256 or run.computed != lost:
            print(f"damage {number}: {kind}, {lost} rows lost: {run.counts}", file=sys.stderr)
        shutil.rmtree(copy)
        shutil.rmtree(trainings.work / "runs" / "damaged")
    count, drawn = options.damages, ", ".join(f"{kind}: {kinds[kind]}" for kind in sorted(kinds))
    return (
        f"{count} damaged caches: a copy of a whole cache with one bit flipped or one file cut at a random "
        "place, and a run that reads all its rows",
        [
            Case(
                "SHA-256 of `student.safetensors`, against the undamaged cache",
                f"{right} the same",
                right == count,
            ),
            Case("rows computed, against rows that the damage hit", f"{counted} the same", counted == count),
            Case("files afterwards, against the undamaged cache", f"{whole} the same", whole == count),
            Case("rows computed in all", f"{recomputed:,}", recomputed > 0),
            Case("damages", drawn, True),
        ],
    )


def _damage(cache, draw, numbers, step):
    """Flips a bit or cuts a file of a cache; returns the kind of damage and the number of rows it hits."""
    files = sorted(file for file in cache.rglob("*") if file.is_file())
    of_rows = [file for file in files if file.suffix == ".rows"]
    others = [file for file in files if file.suffix != ".rows"]
    # Three in four hit rows; of the flips, half hit the few bytes of a sum.
    rows, flips = draw.random() < 0.75, draw.random() < 0.5
    file = draw.choice(of_rows if rows else others)
    size = file.stat().st_size
    if not flips:
        length = draw.randrange(size)
        os.truncate(file, length)
        lost = sum((number + 1) * step > length for number in numbers) if rows else 0
        return f"cuts of {_kind(file)}", lost
    part, place = "", draw.randrange(size)
    if rows:
        in_sum = draw.random() < 0.5
        part = "sums in " if in_sum else "outputs in "
        place = draw.choice(numbers) * step + (
            draw.randrange(SUM_BYTES) if in_sum else draw.randrange(SUM_BYTES, step)
        )
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << draw.randrange(8)
    file.write_bytes(content)
    return f"flips of {part}{_kind(file)}", int(rows)


def _kind(file):
    if file.suffix == ".rows":
        return "files of rows"
    return "`key.json`" if file.stem == "key" else "the teacher's record"


def _contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


CLAIMS = (hits, rows, shared, processes, damages)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    names = [claim.__name__ for claim in CLAIMS]
    parser.add_argument("--damages", type=int, default=200, help="damaged copies of a cache")
    parser.add_argument("--teacher", default="cifar/resnet14", help="its network")
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="claims to test")
    parser.add_argument("--work", type=Path, help="folder for the runs; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdcompress-cache-", dir=options.work) as work:
        trainings = Trainings(Path(work), options.teacher)
        found = [claim(trainings, options) for claim in CLAIMS if claim.__name__ in options.only]
    print("| claim | what was compared | found |")
    print("|---|---|---|")
    for claim, cases in found:
        for number, case in enumerate(cases):
            failed = "" if case.holds else "**FAILED**: "
            print(f"| {'' if number else claim} | {case.compared} | {failed}{case.found} |")
    return int(not all(case.holds for _, cases in found for case in cases))


if __name__ == "__main__":
    sys.exit(main())
