"""`ssh://[user@]host[:port]`: measuring on a machine that has Python, numpy and onnxruntime, and no more."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompress.bench import environment, preflight
from kdcompress.bench.parcel import JOB, NEEDS, SCOUTS, WORKMEN, needs, parcel, text
from kdcompress.bench.plan import Artefact
from kdcompress.bench.runtimes import RUNTIMES
from kdcompress.bench.ssh_link import INTERPRETER, Address, Link, disk_full
from kdcompress.bench.target import Carried, Machine, Progress
from kdcompress.errors import UserError, WorldError, suggest

_ADDRESS = re.compile(
    r"ssh://"
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63})@)?"
    r"(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"/?"
)
ROOM_BYTES = 16_000_000
"""Beside the files: what the programs, the runtimes' caches and the result take."""


def parse_ssh(text: str, python: str = "python3", config: Path | None = None) -> Ssh:
    """The target of a command line.

    Args:
        text: `ssh://[user@]host[:port]`; an IPv6 address stands in brackets.
        python: The interpreter's name or path there; a relative path begins in the home folder.
        config: A file in the place of ~/.ssh/config.

    Raises:
        UserError: It is none.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        hint = (
            "; passwords are not taken, keys and agents are" if re.match(r"ssh://[^/@]*:[^/]*@", text) else ""
        )
        raise UserError(f"--target {text}: expected ssh://user@host or ssh://user@host:port{hint}")
    port = None if found["port"] is None else int(found["port"])
    if port is not None and not 0 < port < 65536:
        raise UserError(f"--target {text}: there is no port {port}")
    if INTERPRETER.fullmatch(python) is None:
        raise UserError(
            f"--remote-python {python!r}: expected a name or a path of letters, digits and _ . / + -; a "
            "relative path begins in the home folder there"
        )
    if config is not None and not config.is_file():
        raise UserError(f"--ssh-config {config}: no such file")
    return Ssh(Address(found["host"].strip("[]"), found["user"], port, python, config))


def check_travelling_runtime(name: str, target: str) -> None:
    """Refuses a runtime that is not expected on other machines.

    Args:
        name: Of it.
        target: As the user gave it.

    Raises:
        UserError: It is not.
    """
    travelling = [known for known, runtime in RUNTIMES.items() if runtime.suffix == ".onnx"]
    if name in travelling:
        return
    if name in RUNTIMES:
        raise UserError(
            f"{target}: the runtime {name!r} needs more than a target must have (Python, numpy, "
            f"onnxruntime); give .onnx files, and of the runtimes {', '.join(travelling)}"
        )
    if ":" in name:
        raise UserError(
            f"{target}: a runtime of your own is not sent to a target; use {', '.join(travelling)}"
        )
    raise UserError(f"unknown runtime {name!r}{suggest(name, travelling)}")


@dataclass(frozen=True, slots=True)
class Ssh:
    """A machine that is reached over ssh.

    Args:
        address: Of it.
    """

    address: Address

    @property
    def described(self) -> dict[str, Any]:
        """Its host, as the user named it."""
        return {"kind": "ssh", "host": self.address.host}

    def check_runtime(self, name: str) -> None:
        """Refuses what is not expected there."""
        check_travelling_runtime(name, f"--target ssh://{self.address.host}")

    @contextmanager
    def opened(self, artefacts: Sequence[Artefact]) -> Iterator[Machine]:
        """Logs in and looks whether it can run these files; nothing of ours is left there afterwards."""
        needed = needs(artefacts)
        with tempfile.TemporaryDirectory(prefix="kdcompress-ssh-") as folder, Link(self.address) as link:
            for name, program in SCOUTS.items():
                link.put(name, program)
            _put_text(link, NEEDS, text(needed), Path(folder))
            yield _There(link, self._looked(link), Path(folder))

    def _looked(self, link: Link) -> dict[str, Any]:
        found: dict[str, Any] | None = None
        try:
            for line in link.run("looking at the machine", "run.py", "--preflight"):
                found = line["preflight"]
        except WorldError as error:
            # An import that kills the process: built for another processor.
            raise UserError(f"{error}. Are numpy and onnxruntime there built for its processor?") from None
        assert found is not None
        if found["problems"]:
            host = self.address.host
            raise UserError(" · ".join(preflight.said(p, f"on {host}") for p in found["problems"]))
        return found


class _There:
    def __init__(self, link: Link, looked: dict[str, Any], scratch: Path) -> None:
        self._link, self._scratch, self._free = link, scratch, looked["free"]
        self.env = environment.own(looked["facts"])
        self.cores = int(looked["facts"]["granted_cores"])
        self.warnings = list(looked["warnings"])

    def run(self, plan: dict[str, Any], folder: Path, progress: Progress | None) -> Carried:
        sent, host = parcel(plan), self._link.address.host
        if sent.size + ROOM_BYTES > self._free:
            room = f"{self._free / 1e6:.0f} MB are free, {(sent.size + ROOM_BYTES) / 1e6:.0f} MB are needed"
            raise disk_full(host, room)
        for done, (name, file) in enumerate(sent.files.items(), 1):
            self._link.put(name, file)
            if progress is not None:
                progress(done, len(sent.files), f"sending to {host}")
        for name, program in WORKMEN.items():
            self._link.put(name, program)
        _put_text(self._link, JOB, text(sent.job()), self._scratch)
        result: dict[str, Any] | None = None
        for line in self._link.run("measuring", "run.py", "--lines"):
            if "result" in line:
                result = line["result"]
            elif progress is not None:
                progress(*line["tell"])
        assert result is not None
        return Carried(result["raw"], environment.own(result["after"]))


def _put_text(link: Link, name: str, content: str, scratch: Path) -> None:
    file = scratch / name
    file.write_text(content, encoding="utf-8")
    link.put(name, file)
