"""Progress on stderr: bars on a terminal, otherwise a line per event and per minute; and warnings, always."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from kdcompress.plain_text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID
    from torch import Tensor

LINE_SECONDS = 60.0
"""Longest time without a line where there is no terminal."""


class Bar(Protocol):
    """Progress of one task with known units."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Adds `amount` to the units done; a note replaces the one before."""

    def report(self, text: str) -> None:
        """Writes a line with the time left where there is no terminal; a terminal has the bar."""


def counted(batches: Iterable[tuple[Tensor, Tensor]], bar: Bar) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches of images and labels, and adds a batch's images to a bar once it is processed."""
    for images, labels in batches:
        yield images, labels
        bar.advance(len(images))


class Progress:
    """Shows the progress of a run and writes its warnings.

    Args:
        quiet: True shows no progress; warnings are still written.

    Attributes:
        quiet: No progress is shown.
        visible: Bars are shown, on a terminal. Otherwise, unless `quiet`, progress is written as lines.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.visible = not quiet and sys.stderr.isatty()
        self._lines = None if quiet or self.visible else _Lines()

    def warn(self, message: str) -> None:
        """Writes a warning to stderr, also without a terminal."""
        _write(f"Warning: {message}")

    def say(self, message: str) -> None:
        """Writes one line about the run, unless `quiet`."""
        if not self.quiet:
            _write(message)

    @contextmanager
    def announce(self, description: str) -> Iterator[None]:
        """Writes that work without units begins, such as an export, and every minute that it goes on."""
        self.say(description)
        if self._lines is None:
            yield
            return
        began = time.monotonic()
        with self._lines.every_minute(
            lambda: f"{description}: for {duration_text(time.monotonic() - began)}"
        ):
            yield

    @contextmanager
    def bar(self, description: str, total: int | None, done: int = 0) -> Iterator[Bar]:
        """Shows the units done of a task and the time left.

        Args:
            description: Name of the task.
            total: Number of units of the whole task; None: not known.
            done: Number of units already done, after a resume.
        """
        if self.visible:
            with _bars() as bars:
                yield _Rich(bars, bars.add_task(description, total=total, completed=done, note=""))
        elif self._lines is None:
            yield _Silent()
        else:
            task = _Task(description, total, done, self._lines.write)
            with self._lines.every_minute(task.text):
                yield task

    @contextmanager
    def counter(self) -> Iterator[Callable[[str, int, int], None]]:
        """Yields a function (task, units done, units in all or 0) for code that counts its own units."""
        if self.visible:
            with _bars() as bars:
                yield _rich_counter(bars)
        elif self._lines is None:
            yield lambda task, done, total: None
        else:
            counter = _Counter(self._lines.write)
            with self._lines.every_minute(counter.text):
                yield counter


class _Lines:
    """Writes lines; the innermost open task adds one whenever a minute has passed without any."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._open: list[Callable[[], str]] = []

    def write(self, line: str) -> None:
        """Writes one line."""
        self._last = time.monotonic()
        _write(line)

    @contextmanager
    def every_minute(self, text: Callable[[], str]) -> Iterator[None]:
        """Writes `text()` after each minute without a line while the block runs; a thread keeps the time."""
        finished = threading.Event()
        self._last = time.monotonic()
        self._open.append(text)

        def watch() -> None:
            while not finished.wait(max(0.01, self._last + LINE_SECONDS - time.monotonic())):
                due = time.monotonic() - self._last >= LINE_SECONDS
                if due and self._open[-1] is text and (line := text()):
                    self.write(line)
                elif due:  # a task within this one speaks, or there is nothing to say yet
                    finished.wait(LINE_SECONDS / 10)

        thread = threading.Thread(target=watch, daemon=True, name="kdcompress progress")
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()
            self._open.pop()


class _Task:
    """A task with units whose progress is written as lines."""

    def __init__(self, description: str, total: int | None, done: int, write: Callable[[str], None]) -> None:
        self.description, self.total, self.done = description, total, done
        self._write, self._note, self._reported = write, "", ""
        self._began, self._done_before = time.monotonic(), done

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.done += amount
        self._note = note or self._note

    def report(self, text: str) -> None:
        self._reported = text.partition(": ")[2] or text
        self._write("; ".join(filter(None, (text, self._left()))))

    def text(self) -> str:
        """Returns the line of a minute."""
        units = f"{self.done:,}" + (f" of {self.total:,}" if self.total else "")
        note = self._note.replace("  ", ", ")
        before = f"before: {self._reported}" if self._reported else ""
        return f"{self.description}: " + "; ".join(filter(None, (units, note, self._left(), before)))

    def _left(self) -> str:
        newly = self.done - self._done_before
        if not self.total or newly <= 0 or self.done >= self.total:
            return ""
        seconds = (time.monotonic() - self._began) / newly * (self.total - self.done)
        return f"{duration_text(seconds)} left"


class _Counter:
    """A function that receives the units done of several tasks and names each task once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._now = write, ("", 0, 0)
        self._named: set[str] = set()

    def __call__(self, task: str, done: int, total: int) -> None:
        if task not in self._named:
            self._named.add(task)
            self._write(task)
        self._now = (task, done, total)

    def text(self) -> str:
        """Returns the line of a minute; nothing before the first task."""
        task, done, total = self._now
        return f"{task}: {done:,}" + (f" of {total:,}" if total else "") if task else ""


class _Silent:
    def advance(self, amount: int = 1, note: str = "") -> None:
        pass

    def report(self, text: str) -> None:
        pass


class _Rich:
    def __init__(self, progress: RichProgress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def advance(self, amount: int = 1, note: str = "") -> None:
        if note:
            self.progress.update(self.task, advance=amount, note=note)
        else:
            self.progress.update(self.task, advance=amount)

    def report(self, text: str) -> None:
        pass


def _rich_counter(bars: RichProgress) -> Callable[[str, int, int], None]:
    tasks: dict[str, TaskID] = {}

    def update(task: str, done: int, total: int) -> None:
        if task not in tasks:
            tasks[task] = bars.add_task(task, note="")
        bars.update(tasks[task], completed=done, total=total or None)

    return update


def _write(line: str) -> None:
    sys.stderr.write(f"{printable(line, keep=chr(10))}\n")
    sys.stderr.flush()


def duration_text(seconds: float) -> str:
    """Returns a time such as `40 s`, `12 min` or `3 h 20 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _bars() -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class PlainColumn(TextColumn):
        """Shows text of any origin: names of networks and files, and what another machine says."""

        def render(self, task: Task) -> Text:
            return Text(printable(self.text_format.format(task=task)))

    columns = (
        PlainColumn("{task.description:<30}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        PlainColumn("{task.fields[note]}"),
    )
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
