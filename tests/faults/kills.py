"""Runs `distill` in forks of this process, which has the package imported, and kills them at given times."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.onnx._internal.exporter._registration  # before the fixture that keeps its tables

from kdcompress import pipeline
from kdcompress.cli import main
from kdcompress.deploy import variants
from kdcompress.run import delivery

FINISHED = Path(__file__).parent.parent / "fixtures" / "e33f4e2" / "finished"
MEASURED = json.loads((FINISHED / "bench.json").read_text())
LONGEST_S = 600
"""Of one attempt, on a machine that does other work."""
COMPARED = {"student.safetensors", "student.onnx", "quantised.safetensors", "teacher.safetensors"} | {
    "test_predictions.safetensors"  # of a baseline
}
TEACHER = ("teacher.model=cifar/resnet8", "teacher.epochs=2", "teacher.min_top1=0")
SHORT = (
    "train.epochs=6",
    "train.max_steps=18", "data.batch_size=512", "train.checkpoint_minutes=1e-9", "bench.rounds=1",
    "export.formats=[safetensors, onnx]",
)  # fmt: skip
CLUSTERS = """
data: {dataset: digits, labels: none, held_out: 0, batch_size: 512}
student: {model: cifar/resnet8}
pseudo_labels: {clusters: 6, method: {name: simsiam, width: 32}, epochs: 2, starts: 2}
method: {name: byot}
train: {epochs: 3, max_steps: 9, threads: 1, checkpoint_minutes: 1e-9}
optim: {lr: 0.05}
bench: {rounds: 1}
"""


@dataclass(frozen=True, slots=True)
class Case:
    """A shortened run.

    Args:
        method: Its method; None: that of the recipe.
        settings: Further `--set`.
        teacher: False: the method has none.
        options: Further options.
        recipe: Text of its recipe; None: quickstart with `SHORT`.
    """

    method: str | None = None
    settings: tuple[str, ...] = ()
    teacher: bool = True
    options: tuple[str, ...] = ()
    recipe: str | None = None

    def arguments(self, folder: Path) -> list[str]:
        """Returns the words of the command, for a run in `folder`."""
        settings, recipe = self.settings, "quickstart"
        if self.recipe is None:
            settings = (*SHORT, *(TEACHER if self.teacher else ()), *settings)
        else:
            recipe = str(folder / "mine.yaml")
            (folder / "mine.yaml").write_text(self.recipe)
        words = ["distill", "--recipe", recipe, "--out", str(folder / "run"), "--threads", "1", "-q"]
        words += [] if self.method is None else ["--method", self.method]
        return [*words, *self.options, *(word for setting in settings for word in ("--set", setting))]


CASES = {
    "kd": Case(),
    "ab": Case("ab"),
    "dml": Case("dml", teacher=False),
    "crd": Case("crd", ("method.negatives=64",)),
    "hsakd": Case("hsakd"),
    "lmcl": Case("lmcl", teacher=False),
    "mixskd": Case("mixskd", teacher=False),
    "snapshot": Case("snapshot", teacher=False),
    "sssd": Case(recipe=CLUSTERS),
    "int8": Case(settings=("export.int8={qat_epochs: 2, max_drop: 100}",)),
    "baseline": Case(options=("--baseline",)),
    "seeds": Case("none", teacher=False, options=("--seeds", "2")),
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """How an attempt ended.

    Args:
        code: Exit code; -9: it was killed.
        output: Stdout and stderr.
        seconds: Time that it took.
    """

    code: int
    output: str
    seconds: float


def attempt(case: Case, folder: Path, *, resume: bool = False, kill_after: float | None = None) -> Attempt:
    """Runs a case in a fork; kills it and all that it started after so many seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    words = case.arguments(folder) + (["--resume"] if resume else [])
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(words, folder)
    handle = os.pidfd_open(pid)
    try:
        ended, _, _ = select.select([handle], [], [], LONGEST_S if kill_after is None else kill_after)
        if not ended:
            os.killpg(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(handle)
    assert kill_after is not None or code != -signal.SIGKILL, "it hangs"
    text = (folder / "output").read_text(errors="replace") if (folder / "output").exists() else ""
    return Attempt(code, text, time.monotonic() - began)


def _child(words: list[str], folder: Path) -> None:
    code = 70
    try:
        os.setsid()
        out = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ["KDCOMPRESS_CACHE"] = str(folder / "cache")
        # Timing a file has no state that a kill could damage, and takes most of such a short run.
        delivery.measure = variants.measure = lambda *_, **__: copy.deepcopy(MEASURED)
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def weights(folder: Path) -> dict[str, bytes]:
    """Reads the files of a run that must be the same bits, by their names in the folder."""
    run = folder / "run"
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.name in COMPARED
    }


def killed_run(case: Case, folder: Path, moments: list[float]) -> int:
    """Runs a case that is killed at each of the moments and resumed, then lets it finish.

    Args:
        case: The case.
        folder: For the run and its cache; emptied first.
        moments: Seconds from the start of an attempt to its kill.

    Returns:
        Number of attempts that were killed; the others had finished before.
    """
    shutil.rmtree(folder, ignore_errors=True)
    kills = 0
    for number, moment in enumerate(moments):
        ended = attempt(case, folder, resume=number > 0, kill_after=moment)
        kills += ended.code == -signal.SIGKILL
        assert ended.code in {0, -signal.SIGKILL}, ended.output
    ended = attempt(case, folder, resume=bool(moments))
    assert ended.code == 0, ended.output
    return kills


def warm(folder: Path) -> None:
    """Runs once in this process, so that the forks find every module and the exporter's tables."""
    assert torch.get_num_threads() == 1
    assert pipeline is not None
    with contextlib.suppress(SystemExit):
        main(Case("none", ("train.max_steps=1",), teacher=False).arguments(folder))
    assert (folder / "run" / "student.onnx").exists()
