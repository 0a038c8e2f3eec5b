"""Runs the cells of a grid: several processes side by side on this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from kdcompress.atomic import translated
from kdcompress.containment import open_in_folder
from kdcompress.errors import Interrupted, TargetUnreachable, UserError, WorldError

POLL_S = 0.2
RAY_POLL_S = 2.0
MEMORY_SHARE = 0.8
"""Of the free memory: what the runs side by side may take."""
_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass(frozen=True, slots=True)
class Task:
    """One process to run.

    Args:
        name: Unique in the grid.
        words: Its command line.
        log: File that its stderr is added to.
    """

    name: str
    words: tuple[str, ...]
    log: Path


@dataclass(slots=True)
class Outcomes:
    """How the tasks ended: exit code by name."""

    codes: dict[str, int] = field(default_factory=dict)

    def add(self, task: Task, code: int) -> None:
        """Records an exit code.

        Raises:
            UserError: The run refused its input; no other run of the grid would do better.
            TargetUnreachable: The target does not answer.
            WorldError: Disk, memory or a download failed.
            Interrupted: The run was stopped from outside.
        """
        self.codes[task.name] = code
        if code in (0, 3):  # a student that must not ship is a result of the comparison
            return
        kinds = {2: UserError, 4: TargetUnreachable, 130: Interrupted}
        reason = last_error(task.log)
        raise kinds.get(code, WorldError)(f"{task.name}: {reason}; its log is {task.log}")


def last_error(log: Path) -> str:
    """Returns the error message at the end of a run's log, or its last line."""
    text = log.read_text(encoding="utf-8", errors="replace").strip() if log.is_file() else ""
    _, found, message = text.rpartition("Error: ")
    return message if found else (text.splitlines() or ["it left no message"])[-1]


def run_here(
    tasks: Sequence[Task],
    *,
    workers: int,
    limit_by_memory: bool,
    devices: Sequence[str] = (),
    on_end: Callable[[Task], None] = lambda task: None,
    on_poll: Callable[[Sequence[Task]], None] = lambda tasks: None,
) -> dict[str, int]:
    """Runs tasks side by side on this machine.

    The first runs alone: it trains the teacher that the others then take from the store, and its peak memory
    says how many fit beside each other.

    Args:
        tasks: In the order in which they begin.
        workers: Most processes at a time.
        limit_by_memory: True: no more than fit into the free memory.
        devices: `CUDA_VISIBLE_DEVICES` of each worker; empty: as the environment has it.
        on_end: Called after each task.
        on_poll: Called several times a second with the tasks that run.

    Returns:
        The exit code of each task, 0 or 3.

    Raises:
        KdcompressError: A task ended otherwise; the others were stopped, and continue with `--resume`.
        KeyboardInterrupt: After the tasks were stopped.
    """
    outcomes, waiting = Outcomes(), list(tasks)
    running: dict[int, tuple[Task, subprocess.Popen[bytes], str]] = {}
    free = list(devices) or [""] * workers
    most, peak_bytes = 1, 0
    try:
        while waiting or running:
            while waiting and len(running) < most and free:
                task, device = waiting.pop(0), free.pop(0)
                process = _start(task, device)
                running[process.pid] = task, process, device
            time.sleep(POLL_S)
            on_poll([task for task, _, _ in running.values()])
            if limit_by_memory and not outcomes.codes:
                peak_bytes = max(peak_bytes, *map(_memory_with_children, running))
            for pid, (task, process, device) in list(running.items()):
                ended, status, usage = os.wait4(pid, os.WNOHANG)
                if not ended:
                    continue
                process.returncode = os.waitstatus_to_exitcode(status)
                del running[pid]
                free.append(device)
                outcomes.add(task, _exit_code(process.returncode))
                on_end(task)
                if len(outcomes.codes) == 1:
                    # The kernel's figure misses no peak, but is of the largest process alone.
                    peak_bytes = max(peak_bytes, usage.ru_maxrss * 1024)
                    most = min(workers, _fitting(peak_bytes)) if limit_by_memory else workers
    finally:
        _stop([process for _, process, _ in running.values()])
    return outcomes.codes


def run_on_ray(
    tasks: Sequence[Task],
    *,
    address: str,
    threads: int,
    gpus: int,
    on_end: Callable[[Task], None] = lambda task: None,
    on_poll: Callable[[Sequence[Task]], None] = lambda tasks: None,
) -> dict[str, int]:
    """Runs tasks on a Ray cluster; every node must see the grid's folder, the data and this installation.

    Args:
        tasks: In the order in which they begin; the first runs alone, as in `run_here`.
        address: Of the cluster; `local`: one on this machine, for the time of the grid.
        threads: CPU cores of each task.
        gpus: GPUs of each task.
        on_end: Called after each task.
        on_poll: Called every few seconds with the tasks that have not ended.

    Returns:
        The exit code of each task, 0 or 3.

    Raises:
        UserError: Ray is not installed, no cluster answers, or none of its machines could run a task.
        KdcompressError: As `run_here`.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--ray: needs Ray; install it with: pip install 'kdcompress[ray]'") from None
    outcomes = Outcomes()
    try:
        ray.init(
            None if address == "local" else address,
            log_to_driver=False,
            include_dashboard=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        raise UserError(f"--ray {address}: no cluster answers ({error})") from None
    try:
        list_nodes: Any = ray.nodes  # has no annotations
        _check_nodes(address, list_nodes(), {"CPU": threads, "GPU": gpus})
        remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_run_task)
        for group in (tasks[:1], tasks[1:]):
            pending = {remote.remote(task, dict(os.environ)): task for task in group}
            while pending:
                done, _ = ray.wait(list(pending), timeout=RAY_POLL_S)
                on_poll(list(pending.values()))
                for reference in done:
                    task = pending.pop(reference)
                    outcomes.add(task, ray.get(reference))
                    on_end(task)
    finally:
        ray.shutdown()
    return outcomes.codes


def _check_nodes(address: str, nodes: Sequence[Mapping[str, Any]], needed: Mapping[str, int]) -> None:
    """Refuses tasks for which no machine of the cluster is large enough: Ray would wait for one for ever.

    Args:
        address: Of the cluster.
        nodes: As `ray.nodes()` lists them.
        needed: What a task takes, by Ray's names.

    Raises:
        UserError: With what the largest machine has.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(all(node.get(kind, 0) >= count for kind, count in needed.items()) for node in alive):
        most = {kind: max((int(node.get(kind, 0)) for node in alive), default=0) for kind in needed}
        told = {"CPU": "CPU cores", "GPU": "GPUs"}
        wanted, has = (
            " and ".join(f"{counts[kind]} {told[kind]}" for kind in needed if needed[kind])
            for counts in (needed, most)
        )
        raise UserError(
            f"--ray {address}: a run takes {wanted}, and the largest machine of the cluster has {has}; "
            "more runs side by side (--jobs) take fewer cores each"
        )


def _run_task(task: Task, environment: Mapping[str, str]) -> int:
    """Runs a task in a Ray worker, with the caller's environment and the GPUs that Ray gave."""
    visible = {k: v for k, v in os.environ.items() if k == "CUDA_VISIBLE_DEVICES"}
    process = _start(task, "", {**environment, **visible})
    return _exit_code(process.wait())


def _start(task: Task, device: str, environment: Mapping[str, str] = os.environ) -> subprocess.Popen[bytes]:
    """Starts a task in a session of its own: Ctrl-C reaches it once, from this process."""
    own = {"CUDA_VISIBLE_DEVICES": device} if device else {}
    with translated(task.log):
        descriptor = open_in_folder(task.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, folder=False)
    with open(descriptor, "ab") as log:
        os.utime(descriptor)  # of an earlier attempt's log too: this run has begun
        return subprocess.Popen(
            task.words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**environment, **own},
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def _end_with_parent() -> None:
    """Asks the kernel for SIGTERM when the parent is gone, so that a killed grid leaves no runs behind."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)


def _exit_code(code: int) -> int:
    """Returns the exit code of a process; one ended by Ctrl-C or SIGTERM counts as interrupted."""
    return 130 if code in (-signal.SIGTERM, -signal.SIGINT) else code


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Asks processes to save and stop, and waits for them."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def _memory_with_children(pid: int) -> int:
    """Returns the bytes that a process and its worker processes hold now; 0 once it has ended.

    Pages that several of them share are counted once, where the system tells.
    """
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(map(_own_memory, family))


def _own_memory(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.rss))
    except psutil.Error:  # it has ended, or is another user's
        return 0


def _fitting(peak_bytes: int) -> int:
    """Returns how many processes of this peak memory fit into the free memory, at least 1."""
    return max(1, int(MEMORY_SHARE * psutil.virtual_memory().available / max(1, peak_bytes)))
