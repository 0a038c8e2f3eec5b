"""Measuring over ssh on a machine that has Python, numpy and onnxruntime, and no more."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompress.bench import environment
from kdcompress.bench.answers import Preflight, Result, check_answer, refuse
from kdcompress.bench.bundle import DRIVER_FILES, JOB, NEEDS, PREFLIGHT_FILES, bundle, needs_of, to_text
from kdcompress.bench.cell import Artefact
from kdcompress.bench.device import check
from kdcompress.bench.runtimes import check_remote_runtime
from kdcompress.bench.ssh_connection import Address, Connection, disk_full
from kdcompress.bench.target import Machine, Progress, RawResult
from kdcompress.errors import UserError, WorldError

ROOM_BYTES = 16_000_000
"""Space beside the files for the programs, the runtimes' caches and the result."""


@dataclass(frozen=True, slots=True)
class Ssh:
    """A machine that is reached over ssh.

    Args:
        address: Its address.
    """

    address: Address

    @property
    def described(self) -> dict[str, Any]:
        """The `target` of a document; the host is called as the user called it."""
        return {"kind": "ssh", "host": self.address.host}

    def check_runtime(self, name: str) -> None:
        """Refuses a runtime that other machines are not expected to have."""
        check_remote_runtime(name, f"--target ssh://{self.address.host}")

    @contextmanager
    def opened(self, artefacts: Sequence[Artefact]) -> Iterator[Machine]:
        """Logs in and checks that the machine can run these artefacts; removes all our files at the end."""
        needs = needs_of(artefacts)
        with (
            tempfile.TemporaryDirectory(prefix="kdcompress-ssh-") as folder,
            Connection(self.address) as connection,
        ):
            for name, program in PREFLIGHT_FILES.items():
                connection.put(name, program)
            _put_text(connection, NEEDS, to_text(needs), Path(folder))
            yield _SshMachine(connection, self._preflight(connection), Path(folder))

    def _preflight(self, connection: Connection) -> dict[str, Any]:
        answer: dict[str, Any] | None = None
        try:
            for line in connection.run("looking at the machine", "run.py", "--preflight"):
                if "preflight" in line:
                    answer = check_answer(line["preflight"], self.address.host, Preflight)
        except WorldError as error:
            # An import that kills the process: built for another processor.
            raise UserError(f"{error}. Are numpy and onnxruntime there built for its processor?") from None
        if answer is None:
            refuse(self.address.host, "nothing about the machine")
        if answer["problems"]:
            host = self.address.host
            try:
                sentences = [check.sentence(p, f"on {host}") for p in answer["problems"]]
            except (LookupError, TypeError, ValueError, AttributeError):
                refuse(host, f"the problems {answer['problems']!r:.200}")
            raise UserError(" · ".join(sentences))
        return answer


class _SshMachine:
    def __init__(self, connection: Connection, preflight: dict[str, Any], scratch: Path) -> None:
        self._connection, self._scratch, self._free_bytes = connection, scratch, preflight["free"]
        self.env = environment.env_block(preflight["facts"])
        self.cores = int(preflight["facts"]["granted_cores"])
        self.warnings = list(preflight["warnings"])

    def run(self, plan: dict[str, Any], folder: Path, progress: Progress | None) -> RawResult:
        files, host = bundle(plan), self._connection.address.host
        needed_bytes = files.size + ROOM_BYTES
        if needed_bytes > self._free_bytes:
            sizes = f"{self._free_bytes / 1e6:.0f} MB are free, {needed_bytes / 1e6:.0f} MB are needed"
            raise disk_full(host, sizes)
        for done, (name, file) in enumerate(files.sources.items(), 1):
            self._connection.put(name, file)
            if progress is not None:
                progress(done, len(files.sources), f"sending to {host}")
        for name, program in DRIVER_FILES.items():
            self._connection.put(name, program)
        _put_text(self._connection, JOB, to_text(files.job()), self._scratch)
        result: dict[str, Any] | None = None
        for line in self._connection.run("measuring", "run.py", "--lines"):
            if "result" in line:
                result = check_answer(line["result"], host, Result)
            elif progress is not None and line.get("tell") is not None:
                progress(*line["tell"])
        if result is None:
            refuse(host, "no measurements")
        return RawResult(result["raw"], environment.env_block(result["after"]))


def _put_text(connection: Connection, name: str, content: str, scratch: Path) -> None:
    file = scratch / name
    file.write_text(content, encoding="utf-8")
    connection.put(name, file)
