"""The progress of the runs of a grid, read from the log of each."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from kdcompress.data.decode import open_regular
from kdcompress.progress import Bar
from kdcompress.tools.grid_runner import Task

SECONDS = 2.0
"""Time between two looks at the logs."""
TAIL_BYTES = 65_536
"""Of a log: enough for its last line."""


class RunningNote:
    """Tells a bar which runs are under way and their epochs, every two seconds.

    Args:
        bar: Of the whole grid.
    """

    def __init__(self, bar: Bar) -> None:
        self.bar, self._next = bar, 0.0
        self._since = time.time() - 1  # the clock of files is coarse

    def __call__(self, running: Sequence[Task]) -> None:
        """Reads the logs of the runs, unless that was just done.

        Args:
            running: Those that have not ended; of a cluster's, some may still wait for a machine.
        """
        now = time.monotonic()
        if now >= self._next:
            self._next = now + SECONDS
            begun = [task for task in running if _used_at(task.log) >= self._since]
            self.bar.advance(0, note=", ".join(map(_describe, begun)))


def _used_at(log: Path) -> float:
    """Returns when a run last began with this log or wrote to it, in seconds since 1970; 0: never."""
    try:
        return log.stat().st_mtime
    except OSError:
        return 0.0


def _describe(task: Task) -> str:
    name = task.name.removeprefix("cells/").removeprefix("teachers/")
    reached = last_epoch(task.log.with_suffix("") / "log.jsonl")
    return f"{name} ({reached})" if reached else name


def last_epoch(log: Path) -> str:
    """Returns the phase and the epoch of a log's last whole line, such as `student epoch 4`; empty: none yet.

    Args:
        log: `log.jsonl` of a run that may be writing to it.
    """
    try:
        with open_regular(log) as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            *whole, _ = file.read(TAIL_BYTES).split(b"\n")
        line = json.loads(whole[-1])
        return f"{line['phase']} epoch {line['epoch']}"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # only a note
        return ""
