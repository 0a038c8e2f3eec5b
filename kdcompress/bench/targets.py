"""Reads the --target of a command line: local, ssh://[user@]host[:port] or pack:DIR."""

from __future__ import annotations

import re
from pathlib import Path

from kdcompress.bench.pack import PACK
from kdcompress.bench.ssh_connection import INTERPRETER, Address
from kdcompress.bench.ssh_target import Ssh
from kdcompress.bench.target import Local, Target
from kdcompress.errors import UserError

LOCAL = "local"
_SSH = "ssh://"
_ADDRESS = re.compile(
    r"ssh://"
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63})@)?"
    r"(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"/?"
)


def parse_target(text: str, *, remote_python: str = "python3", ssh_config: Path | None = None) -> Target:
    """Reads a target that answers now.

    Args:
        text: `local` or `ssh://[user@]host[:port]`; an IPv6 address stands in brackets.
        remote_python: Name or path of the interpreter on an ssh target; a relative path begins in the home
            folder.
        ssh_config: File that ssh reads in place of ~/.ssh/config.

    Raises:
        UserError: It is none of them; `pack:DIR` is no machine (see pack.py).
    """
    if text == LOCAL:
        return Local()
    if text.startswith(_SSH):
        return _parse_ssh(text, remote_python, ssh_config)
    if text.startswith(PACK):
        raise UserError(f"--target {text}: only `bench` packs; name a machine that answers now")
    raise UserError(f"--target {text}: expected local, ssh://user@host[:port] or pack:DIR")


def _parse_ssh(text: str, python: str, config: Path | None) -> Ssh:
    match = _ADDRESS.fullmatch(text)
    if match is None:
        has_password = re.match(r"ssh://[^/@]*:[^/]*@", text)
        hint = "; passwords are not taken, keys and agents are" if has_password else ""
        raise UserError(f"--target {text}: expected ssh://user@host or ssh://user@host:port{hint}")
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 0 < port < 65536:
        raise UserError(f"--target {text}: there is no port {port}")
    if INTERPRETER.fullmatch(python) is None:
        raise UserError(
            f"--remote-python {python!r}: expected a name or a path of letters, digits and _ . / + -; a "
            "relative path begins in the home folder there"
        )
    if config is not None and not config.is_file():
        raise UserError(f"--ssh-config {config}: no such file")
    return Ssh(Address(match["host"].strip("[]"), match["user"], port, python, config))
