"""Progress on stderr, only when a person is watching; and the notices that are said in any case."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Bar(Protocol):
    """One thing that is under way."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Moves on; the note replaces the one before."""


class Progress:
    """What a run says while it works.

    Args:
        quiet: No bars; notices still come.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.visible = not quiet and sys.stderr.isatty()

    def warn(self, message: str) -> None:
        """A line that must not be missed, watched or not."""
        sys.stderr.write(f"Warning: {message}\n")
        sys.stderr.flush()

    @contextmanager
    def bar(self, description: str, total: int | None, done: int = 0) -> Iterator[Bar]:
        """A bar with the time left.

        Args:
            description: What is under way.
            total: In units of `advance`; None if unknown.
            done: Already done, after a resume.
        """
        if not self.visible:
            yield _Silent()
            return
        with _bars() as bars:
            yield _Rich(bars, bars.add_task(description, total=total, completed=done, note=""))

    @contextmanager
    def counter(self) -> Iterator[Callable[[str, int, int], None]]:
        """A function (what is under way, done, total; 0 if unknown) for work that counts for itself."""
        if not self.visible:
            yield lambda what, done, total: None
            return
        with _bars() as bars:
            tasks: dict[str, TaskID] = {}

            def tell(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(what, note="")
                bars.update(tasks[what], completed=done, total=total or None)

            yield tell


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
