"""Where is measured: on this machine, or over ssh on another one (ssh.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdcompress.bench import driver, environment, runtimes
from kdcompress.bench.plan import Artefact
from kdcompress.cores import granted_cores
from kdcompress.errors import UserError

Progress = Callable[[int, int, str], None]
"""(done, of, what is being done)."""

LOCAL = "local"
PACK = "pack:"
SSH = "ssh://"


@dataclass(frozen=True, slots=True)
class Carried:
    """A plan that has been carried out.

    Args:
        raw: As `driver.run` gives it.
        after: The machine's `env` block when all was done.
    """

    raw: dict[str, Any]
    after: dict[str, Any]


class Machine(Protocol):
    """A target that has been reached and can do what is to come."""

    @property
    def env(self) -> dict[str, Any]:
        """Its `env` block, before anything is timed."""

    @property
    def cores(self) -> int:
        """How many it grants: "all" threads, and the most."""

    @property
    def warnings(self) -> list[str]:
        """Sentences on its state."""

    def run(self, plan: dict[str, Any], folder: Path, progress: Progress | None) -> Carried:
        """Carries a plan out; a cell that fails is in the raw result.

        Args:
            plan: As `plan.plan` gives it, with absolute paths of this machine.
            folder: Where its arrays are.
            progress: Called as work goes on.
        """


class Checked(Protocol):
    """What may refuse a runtime."""

    def check_runtime(self, name: str) -> None:
        """Refuses a runtime that cannot be used there, before anything is reached.

        Raises:
            UserError: It cannot.
        """


class Target(Checked, Protocol):
    """A machine to measure on, not yet reached."""

    @property
    def described(self) -> dict[str, Any]:
        """The `target` of a document: `{"kind", ...}`."""

    def opened(self, artefacts: Sequence[Artefact]) -> AbstractContextManager[Machine]:
        """Reaches it and finds out whether it can run these; on leaving the block nothing of ours is there.

        Raises:
            UserError: It lacks something; the message says what to install.
            TargetUnreachable: It does not answer.
            WorldError: Its disk is full.
        """


class Local:
    """This machine."""

    @property
    def described(self) -> dict[str, Any]:
        """`local`."""
        return {"kind": LOCAL}

    def check_runtime(self, name: str) -> None:
        """Refuses a runtime that is unknown or not installed."""
        runtimes.check_runtime(name)

    @contextmanager
    def opened(self, artefacts: Sequence[Artefact]) -> Iterator[Machine]:
        """It is here."""
        yield _Here()


class _Here:
    def __init__(self) -> None:
        self.cores = granted_cores()
        self.warnings = environment.load_warnings()
        self.env = environment.environment()

    def run(self, plan: dict[str, Any], folder: Path, progress: Progress | None) -> Carried:
        raw = driver.run(plan, str(folder), progress)
        return Carried(raw, environment.environment())


def parse_target(text: str, *, remote_python: str = "python3", ssh_config: Path | None = None) -> Target:
    """The target that a command line names.

    Args:
        text: `local` or `ssh://[user@]host[:port]`.
        remote_python: Of an ssh target: the interpreter's name or path there.
        ssh_config: Of an ssh target: a file in the place of ~/.ssh/config.

    Raises:
        UserError: It is none of them; `pack:DIR` is no machine (see pack.py).
    """
    if text == LOCAL:
        return Local()
    if text.startswith(SSH):
        from kdcompress.bench.ssh import parse_ssh

        return parse_ssh(text, remote_python, ssh_config)
    if text.startswith(PACK):
        raise UserError(f"--target {text}: only `bench` packs; name a machine that answers now")
    raise UserError(f"--target {text}: expected local, ssh://user@host[:port] or pack:DIR")
