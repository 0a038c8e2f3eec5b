"""Progress bars on stderr, shown on a terminal only, and warnings, which are always written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Bar(Protocol):
    """Progress bar of one task."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Adds `amount` to the units done; a note replaces the one before."""


class Progress:
    """Shows the progress of a run and writes its warnings.

    Args:
        quiet: True shows no bars; warnings are still written.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.visible = not quiet and sys.stderr.isatty()

    def warn(self, message: str) -> None:
        """Writes a warning to stderr, also without a terminal."""
        sys.stderr.write(f"Warning: {message}\n")
        sys.stderr.flush()

    @contextmanager
    def bar(self, description: str, total: int | None, done: int = 0) -> Iterator[Bar]:
        """Shows a bar with the time left.

        Args:
            description: Name of the task.
            total: Number of units of the whole task; None: not known.
            done: Number of units already done, after a resume.
        """
        if not self.visible:
            yield _Silent()
            return
        with _bars() as bars:
            yield _Rich(bars, bars.add_task(description, total=total, completed=done, note=""))

    @contextmanager
    def counter(self) -> Iterator[Callable[[str, int, int], None]]:
        """Yields a function (task, units done, units in all or 0) for code that counts its own units."""
        if not self.visible:
            yield lambda task, done, total: None
            return
        with _bars() as bars:
            tasks: dict[str, TaskID] = {}

            def update(task: str, done: int, total: int) -> None:
                if task not in tasks:
                    tasks[task] = bars.add_task(task, note="")
                bars.update(tasks[task], completed=done, total=total or None)

            yield update


class _Silent:
    def advance(self, amount: int = 1, note: str = "") -> None:
        pass


class _Rich:
    def __init__(self, progress: RichProgress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def advance(self, amount: int = 1, note: str = "") -> None:
        if note:
            self.progress.update(self.task, advance=amount, note=note)
        else:
            self.progress.update(self.task, advance=amount)


def _bars() -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<30}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
