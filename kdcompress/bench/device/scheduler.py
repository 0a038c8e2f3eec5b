"""Carries out a plan: starts a worker per cell, compares outputs, warms up, and times shuffled rounds.

This file stands alone beside worker.py (standard library and numpy; Python 3.8 and newer): the two, a plan
and the files that it names can be copied to another machine and run there.

A plan, written by `kdcompress.bench.plan`, holds:

- `protocol`: rounds, block_s, turns, min_calls, warmup_s, warmup_calls, gap_ms, timeout_s, seed, and for the
  parity check: parity_limit, parity_vary, parity_rounding
- `cells`, each with: artefact, control (true for the A/A copy), runtime, file, threads, batch, shape, images,
  reference, tolerance, count, group, exact
- `allow_code`: true if a network that runs the user's code may be built

Files in it are absolute, or relative to the plan's folder. The result is `{"cells": [...], "failures":
[...]}`: for each cell `loaded` (the worker's answer), `parity` and `blocks` (its answers, one per round), or
null if it failed.
"""

from __future__ import annotations

import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Dict, List, Optional

import numpy as np

REFERENCE = "the reference"
"""Name of given outputs in a parity."""
NOISE = 8
"""Number of noise images whose outputs are compared; a worker repeats them where they are large."""

WORKER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")

Progress = Callable[[int, int, str], None]
"""(done, total, the present step)."""


class CellFailed(Exception):
    """A worker could not carry out a command and has ended.

    Args:
        stage: The command.
        kind: The class of the error, "Timeout" or "Crashed".
        message: One line.
    """

    def __init__(self, stage: str, kind: str, message: str) -> None:
        self.stage, self.kind, self.message = stage, kind, message
        super().__init__("%s: %s: %s" % (stage, kind, message))


class Session:
    """A worker process, started at once and ended at the end of the `with` block.

    Args:
        threads: Number of the runtime's threads; fixed in the environment before anything is imported.
        allow_code: True if a network that runs the user's code may be built.
        scratch: Folder for the runtime's own files; None: it has none.
    """

    def __init__(self, threads: int, allow_code: bool = False, scratch: Optional[str] = None) -> None:
        settings = {
            "threads": threads,
            "parent": os.getpid(),
            "allow_code": allow_code,
            "scratch": scratch,
        }
        environment = dict(os.environ)
        if __package__:  # in kdcompress, which the worker's torch runtimes import
            root = os.path.abspath(os.path.join(os.path.dirname(WORKER), "../../.."))
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, WORKER, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            universal_newlines=True,
            env=environment,
            start_new_session=True,  # its own child processes can then be ended with it
        )
        self._answers: "queue.Queue[str]" = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def ask(self, command: str, timeout_s: float, **arguments: Any) -> Dict[str, Any]:
        """Sends a command and waits for its answer.

        Args:
            command: A command of worker.py.
            timeout_s: Seconds after which the worker is ended.
            arguments: The command's arguments.

        Raises:
            CellFailed: The worker answered with an error, ended without an answer, or was too slow.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(dict(arguments, cmd=command)) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise CellFailed(command, "Timeout", "no answer within %.0f s; ended" % timeout_s) from None
        except BrokenPipeError:
            line = ""
        if not line:
            raise CellFailed(command, "Crashed", self._last_words())
        answer: Dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            message = " ".join(str(answer["message"]).split())  # one line, whatever the runtime wrote
            raise CellFailed(command, answer["type"], message)
        return answer

    def close(self) -> None:
        """Kills the process and its child processes."""
        try:
            # The group outlives a worker that has died, and its other processes hold the pipes open.
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all are gone
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass  # an unsent command of a process that is gone

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")  # end of file: the process is gone

    def _last_words(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        how = "ended by " + signal.Signals(-code).name if code < 0 else "ended with code %d" % code
        return "the worker " + how + ("; its last words: " + lines[-1] if lines else "")


def run(plan: Dict[str, Any], folder: str = ".", progress: Optional[Progress] = None) -> Dict[str, Any]:
    """Measures the cells of a plan; a cell that fails is left out, and the others go on.

    Args:
        plan: A plan, as described at the top of this file.
        folder: Folder of its relative paths.
        progress: Called at each step.

    Returns:
        The result as at the top of this file.
    """
    work = _Run(plan, folder, progress or (lambda done, of, step: None))
    try:
        work.load()
        work.check()
        work.warm_up()
        work.measure()
    finally:
        work.close()
    return {
        "cells": [cell.raw() if cell.alive else None for cell in work.cells],
        "failures": work.failures,
    }


class _Cell:
    def __init__(self, number: int, entry: Dict[str, Any]) -> None:
        self.number, self.entry, self.alive = number, entry, True
        self.session: Optional[Session] = None
        self.loaded: Dict[str, Any] = {}
        self.logits: Any = None
        self.parity: Optional[Dict[str, Any]] = None
        self.blocks: List[Dict[str, Any]] = []

    @property
    def label(self) -> str:
        return "%(artefact)s (%(runtime)s, threads %(threads)d, batch %(batch)d)" % self.entry

    def raw(self) -> Dict[str, Any]:
        return {"loaded": self.loaded, "parity": self.parity, "blocks": self.blocks}


def _merge_turns(turns: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Merges the turns of one block into one answer."""
    block: Dict[str, Any] = {"samples_ns": [sample for turn in turns for sample in turn["samples_ns"]]}
    for key in ("wall_s", "cpu_s", "involuntary_switches", "steal_s"):
        parts = [turn[key] for turn in turns]
        block[key] = None if None in parts else sum(parts)
    block["peak_mb"] = max(turn["peak_mb"] for turn in turns)
    return block


def _images_of(cell: _Cell) -> Any:
    """Tells real images from noise, and their shape."""
    return cell.loaded["images"], cell.loaded["shape"]


class _Run:
    def __init__(self, plan: Dict[str, Any], folder: str, progress: Progress) -> None:
        self.protocol, self.folder, self.progress = plan["protocol"], folder, progress
        self.allow_code = plan["allow_code"]
        self.cells = [_Cell(number, entry) for number, entry in enumerate(plan["cells"])]
        self.failures: List[Dict[str, Any]] = []
        self.scratch = tempfile.mkdtemp(prefix="kdcompress-bench-")

    def load(self) -> None:
        """Starts a worker per cell."""
        for cell in self.cells:
            self.progress(cell.number, len(self.cells), "loading " + cell.label)
            entry = cell.entry
            # Folders of their own: what one cell compiles must not be found ready by the next.
            scratch = os.path.join(self.scratch, str(cell.number))
            os.mkdir(scratch)
            cell.session = Session(entry["threads"], self.allow_code, scratch)
            answer = self.ask(
                cell, "load", runtime=entry.get("program", entry["runtime"]), file=self.path(entry["file"]),
                batch=entry["batch"], shape=entry["shape"], images=self.path(entry["images"]),
                seed=self.protocol["seed"],
            )  # fmt: skip
            if answer is not None:
                cell.loaded = answer

    def check(self) -> None:
        """Compares each cell's outputs with the reference, or with those of the first cell of its group."""
        measured = [cell for cell in self.alive() if not cell.entry["control"]]
        first: Dict[str, _Cell] = {}
        for cell in measured:
            entry, is_real = cell.entry, cell.loaded["images"] == "real"
            # Given outputs belong to the given images, not to noise.
            reference_file = entry["reference"] if is_real else None
            if (
                reference_file is None
                and [other.entry["group"] for other in measured].count(entry["group"]) < 2
            ):
                continue
            reference = (
                None
                if reference_file is None
                else np.load(str(self.path(reference_file)), allow_pickle=False)
            )
            count = NOISE if not is_real else entry["count"] if reference is None else len(reference)
            self.progress(cell.number, len(self.cells), "comparing the outputs of " + cell.label)
            answer = self.ask(cell, "logits", count=count)
            if answer is None:
                continue
            cell.logits = np.asarray(answer["logits"], dtype=np.float64).reshape(count, -1)
            if reference is not None:
                self.compare_with_given(cell, reference)
                continue
            other = first.setdefault(entry["group"], cell)
            comparable = other.logits.shape == cell.logits.shape and _images_of(other) == _images_of(cell)
            if other is not cell and comparable:
                cell.parity = self.parity_of(cell.logits, other.logits, other.label)
                same = entry["artefact"] == other.entry["artefact"]
                exact = entry["exact"] and other.entry["exact"]
                # Where the outputs hardly vary, rounding is all there is to see of them.
                if same and exact and cell.parity["varies"] and not cell.parity["within"]:
                    message = "its outputs differ from those of %(to)s by %(max_err_over_spread).2g of "
                    message += "their spread over %(n)d images; not timed"
                    self.refuse(cell, message % cell.parity)

    def compare_with_given(self, cell: _Cell, reference: Any) -> None:
        """Compares outputs with the reference; a float32 file must be within its tolerance."""
        tolerance = cell.entry["tolerance"]
        if cell.logits.shape != reference.shape:
            message = "its outputs are %s, those of the reference %s; not timed"
            self.refuse(cell, message % (cell.logits.shape[1:], reference.shape[1:]))
            return
        cell.parity = self.parity_of(cell.logits, reference, REFERENCE)
        error = float(np.abs(cell.logits - reference).max())
        if tolerance is not None and cell.entry["exact"] and not error <= tolerance:  # NaN is not near either
            message = "its outputs differ from those of the reference by %.3g, more than %.3g; not timed"
            self.refuse(cell, message % (error, tolerance))

    def parity_of(self, outputs: Any, reference: Any, to: str) -> Dict[str, Any]:
        """Compares outputs `[N, K]` with a reference, relative to the reference's spread over images."""
        spread = float(np.std(reference, axis=0).mean())
        mean, largest = float(np.abs(reference).mean()), float(np.abs(reference).max())
        error = float(np.abs(outputs - reference).max())
        least = self.protocol["parity_vary"] * mean
        bound = (
            self.protocol["parity_limit"] * max(spread, least) + self.protocol["parity_rounding"] * largest
        )
        return {
            "to": to,
            "n": len(reference),
            "top1_agreement": float((outputs.argmax(1) == reference.argmax(1)).mean()),
            "max_err_over_spread": error / spread if spread > 0 else None,
            # Outputs that hardly depend on the image agree whatever is wrong with the network.
            "varies": bool(spread >= least and spread > 0),
            "within": bool(error <= bound),
        }

    def refuse(self, cell: _Cell, message: str) -> None:
        """Leaves out a cell with wrong outputs: its time would mean nothing."""
        assert cell.session is not None
        self.fail(cell, CellFailed("parity", "Mismatch", message))
        cell.session.close()

    def warm_up(self) -> None:
        """Runs unrecorded calls."""
        for cell in self.alive():
            self.progress(cell.number, len(self.cells), "warming up " + cell.label)
            self.ask(
                cell, "block", seconds=self.protocol["warmup_s"], min_calls=self.protocol["warmup_calls"]
            )  # fmt: skip

    def measure(self) -> None:
        """Times the rounds: in each, every cell has a block of several short turns among those of others.

        The load of other programs changes from one tenth of a second to the next. Blocks of one piece would
        each meet another part of it; interleaved short turns all meet the same.
        """
        order, protocol = random.Random(self.protocol["seed"]), self.protocol
        rounds, turns = protocol["rounds"], protocol["turns"]
        least = -(-protocol["min_calls"] // turns)
        for number in range(rounds):
            self.progress(number, rounds, "timing round %d of %d" % (number + 1, rounds))
            block: Dict[int, List[Dict[str, Any]]] = {}
            for _ in range(turns):
                cells = self.alive()
                order.shuffle(cells)
                for cell in cells:
                    answer = self.ask(cell, "block", seconds=protocol["block_s"] / turns, min_calls=least)
                    if answer is not None:
                        block.setdefault(cell.number, []).append(answer)
                    if cell.entry["threads"] > 1:
                        time.sleep(protocol["gap_ms"] / 1000)
            for cell in self.alive():
                cell.blocks.append(_merge_turns(block[cell.number]))
        self.progress(rounds, rounds, "timing done")

    def alive(self) -> List[_Cell]:
        return [cell for cell in self.cells if cell.alive]

    def path(self, name: Optional[str]) -> Optional[str]:
        return None if name is None else os.path.join(os.path.abspath(self.folder), name)

    def ask(self, cell: _Cell, command: str, **arguments: Any) -> Optional[Dict[str, Any]]:
        assert cell.session is not None
        try:
            return cell.session.ask(command, self.protocol["timeout_s"], **arguments)
        except CellFailed as failure:
            self.fail(cell, failure)
            return None

    def fail(self, cell: _Cell, failure: CellFailed) -> None:
        """Leaves out a cell with all its blocks, since its rounds cannot be paired with those of others."""
        cell.alive = False
        self.failures.append(
            {"cell": cell.number, "stage": failure.stage, "type": failure.kind, "message": failure.message}
        )

    def close(self) -> None:
        for cell in self.cells:
            if cell.session is not None:
                cell.session.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
