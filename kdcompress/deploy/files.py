"""Which files a format consists of, and whether it can be written here; read off the formats' headers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kdcompress import discovery
from kdcompress.errors import UserError


def parts_of(file: Path) -> list[Path]:
    """A format's file and those that belong to it, as the weights beside a graph; the file itself last."""
    for name in discovery.names("format"):
        constants = _constants(name)
        if constants["SUFFIX"] == file.suffix:
            return [*(file.with_suffix(suffix) for suffix in constants.get("BESIDE", ())), file]
    return [file]


def format_of(file: Path) -> str | None:
    """The format whose files have this one's suffix."""
    return next((n for n in discovery.names("format") if _constants(n)["SUFFIX"] == file.suffix), None)


def check_installed(formats: Iterable[str], key: str) -> None:
    """Refuses formats that need a package which is not here.

    Args:
        formats: Of `discovery.names("format")`.
        key: What asked for them, as the user has it.

    Raises:
        UserError: One does.
    """
    for name in formats:
        package = _constants(name).get("PACKAGE")
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"{key}: {name} needs {package}: pip install 'kdcompress[{name}]'")


def _constants(name: str) -> dict[str, Any]:
    return discovery.header("format", name).constants
