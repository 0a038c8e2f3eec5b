"""The machine to measure on, as `measure` sees it; this machine is one (ssh_target.py has the other)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdcompress.bench import environment, runtimes
from kdcompress.bench.cell import Artefact
from kdcompress.bench.device import scheduler
from kdcompress.cores import granted_cores

Progress = Callable[[int, int, str], None]
"""(done, total, the present step)."""


@dataclass(frozen=True, slots=True)
class RawResult:
    """The measurements of a plan that has been carried out.

    Args:
        raw: The result of `scheduler.run`.
        after: The machine's `env` block at the end.
    """

    raw: dict[str, Any]
    after: dict[str, Any]


class Machine(Protocol):
    """A target that has been reached and can run the benchmark."""

    @property
    def env(self) -> dict[str, Any]:
        """Its `env` block before anything is timed."""

    @property
    def cores(self) -> int:
        """Number of cores it grants; "all" threads are so many, and more are capped."""

    @property
    def warnings(self) -> list[str]:
        """Sentences on its state."""

    def run(self, plan: dict[str, Any], folder: Path, progress: Progress | None) -> RawResult:
        """Carries a plan out; a cell that fails is in the raw result.

        Args:
            plan: The result of `plan.plan`, with absolute paths of this machine.
            folder: Folder of its arrays.
            progress: Called after each step.
        """


class RuntimeChecker(Protocol):
    """Refuses runtimes that a target does not have."""

    def check_runtime(self, name: str) -> None:
        """Refuses a runtime that cannot be used there, before the target is reached.

        Raises:
            UserError: It cannot.
        """


class Target(RuntimeChecker, Protocol):
    """A machine to measure on, not yet reached."""

    @property
    def described(self) -> dict[str, Any]:
        """The `target` of a document: `{"kind", ...}`."""

    def opened(self, artefacts: Sequence[Artefact]) -> AbstractContextManager[Machine]:
        """Reaches it and checks that it can run these artefacts; removes all our files at the end.

        Raises:
            UserError: It lacks something; the message says what to install.
            TargetUnreachable: It does not answer.
            WorldError: Its disk is full.
        """


class Local:
    """This machine."""

    @property
    def described(self) -> dict[str, Any]:
        """The `target` of a document."""
        return {"kind": "local"}

    def check_runtime(self, name: str) -> None:
        """Refuses a runtime that is unknown or not installed."""
        runtimes.check_runtime(name)

    @contextmanager
    def opened(self, artefacts: Sequence[Artefact]) -> Iterator[Machine]:
        """Yields this machine."""
        yield _LocalMachine()


class _LocalMachine:
    def __init__(self) -> None:
        self.cores = granted_cores()
        self.warnings = environment.load_warnings()
        self.env = environment.environment()

    def run(self, plan: dict[str, Any], folder: Path, progress: Progress | None) -> RawResult:
        raw = scheduler.run(plan, str(folder), progress)
        return RawResult(raw, environment.environment())
