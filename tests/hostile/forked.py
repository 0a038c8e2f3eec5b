"""Runs one input in a fork of this process, which has the package imported, and says how it ended."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

from kdcompress.errors import KdcompressError

CPU_SECONDS = 10
WALL_SECONDS = 60
"""On a machine that does other work the wall clock says little: an input that waits is stopped by it."""
ADDRESSED_BYTES = 4 << 30
"""Private memory that a fork may ask for beyond what it begins with; more is refused to it."""
WRITABLE = ("run", "cache", "home", "tmp")
"""Folders of an input that the program may write into."""
CODES = {0, 2, 3, 4, 5}
"""Of the contract; 1 is a bug, 130 an interrupt."""
CONTROLS = frozenset("\x1b\x07\u2028\u2029\u202e\u2066") | frozenset(map(chr, range(0x80, 0xA0)))
"""Characters that a terminal acts on."""
PLACE = []
"""Folder of this input, in the fork."""


@dataclass(frozen=True)
class Ending:
    """How an input ended.

    Args:
        code: Exit code; negative: the signal that ended it.
        output: Stdout and stderr.
        megabytes: Greatest resident memory.
        changed: Files outside of the run folder that were written.
    """

    code: int
    output: str
    megabytes: float
    changed: tuple[str, ...]

    def problem(self, limit_mb):
        """Says what is wrong with it; None: nothing."""
        if self.code not in CODES:
            return f"exit code {self.code}"
        if "Traceback" in self.output:
            return "a traceback"
        if CONTROLS & set(self.output):
            return "control characters"
        if self.changed:
            return f"written outside of the run folder: {self.changed}"
        return f"{self.megabytes:.0f} MB" if self.megabytes > limit_mb else None


def prepare(make, valid, folder):
    """Runs the valid inputs of a kind twice and returns how the second ones ended.

    After the first ones this process imports what their forks imported, and what `make.prepare` loads, if
    there is such a function: the forks that follow share it, and neither import it again nor count it as
    memory of their own.
    """
    getattr(make, "prepare", lambda: None)()
    for function in valid:
        run(function, 0, folder)
        _import_modules((folder / "modules").read_text().split())
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page that has an object on it
    return [run(function, 0, folder) for function in valid]


def _import_modules(names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with contextlib.suppress(ImportError):  # modules that a program makes while it runs
                importlib.import_module(name)


def run(make, seed, folder):
    """Makes input number `seed` in the folder and hands it to the program, in a fork."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("cwd", "cache", "home", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "input").mkdir()
    pid = os.fork()
    if pid == 0:
        _child(make, seed, folder)
    code, usage = _wait(pid)
    output = (folder / "output").read_text(encoding="utf-8", errors="replace")
    listed = folder / "made"
    strange = _listing(folder / "cwd")
    if listed.exists():  # nothing is new, changed or gone
        strange |= _listing(folder / "input") ^ set(listed.read_text().splitlines())
    changed = tuple(sorted(strange))
    return Ending(code, output, usage.ru_maxrss / 1024, changed)


def _child(make, seed, folder):
    code = 70
    try:
        os.setsid()
        out = os.open(folder / "output", os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(folder / "cwd")
        os.environ |= {"KDCOMPRESS_CACHE": str(folder / "cache"), "HOME": str(folder / "home")}
        os.environ["TMPDIR"] = str(folder / "tmp")
        os.fsync = lambda descriptor: None  # no input takes the power away, and a busy disk takes seconds
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        addressed = _private_bytes() + ADDRESSED_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (addressed, addressed))
        _note_inputs_of(folder)
        imported = set(sys.modules)
        code = _ended(make, random.Random(seed), folder / "input")
        (folder / "modules").write_text("\n".join(sys.modules.keys() - imported))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def own_megabytes():
    """Returns the resident memory that a fork of this process begins with."""
    return _status("VmRSS") / 1024


def _private_bytes():
    return 1024 * _status("VmData")


def _status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def _ended(make, rng, folder):
    try:
        make(rng, folder)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KdcompressError as error:
        sys.stderr.write(f"{type(error).__name__}: {str(error)!a}\n")
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _note_inputs_of(folder):
    """Lets the program's first call list the input's files, as those that were there before."""
    from hostile import cases

    PLACE[:] = [folder]
    inner = cases.main

    def noted(words):
        note_inputs()
        return inner(words)

    cases.main = noted


def note_inputs():
    """Lists the input's files as those that were there before; for inputs that call a function."""
    (PLACE[0] / "made").write_text("\n".join(sorted(_listing(PLACE[0] / "input"))))


def _listing(folder):
    paths = [path for path in folder.rglob("*") if path.relative_to(folder).parts[0] not in WRITABLE]
    return {f"{path}:{path.stat().st_mtime_ns}" for path in paths if path.is_file()}


def _wait(pid):
    handle = os.pidfd_open(pid)
    try:
        if not select.select([handle], [], [], WALL_SECONDS)[0]:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0)
        _, status, usage = os.wait4(pid, 0)
        return os.waitstatus_to_exitcode(status), usage
    finally:
        os.close(handle)


__all__ = ["Ending", "Path", "own_megabytes", "prepare", "run"]
