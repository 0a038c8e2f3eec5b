"""The export formats, as their files' headers describe them: suffixes, titles, runtimes, packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdcompress import discovery
from kdcompress.errors import UserError


@dataclass(frozen=True, slots=True)
class Format:
    """The constants in the header of an export format's file.

    Args:
        name: Its name, as in `export.formats`.
        suffix: Suffix of its files (`SUFFIX`).
        title: Its name in tables (`TITLE`).
        runtime: Runtime that `bench` times its files in (`RUNTIME`).
        beside: Suffixes of files that belong to one of its files (`BESIDE`).
        package: Package that it needs beside those of kdcompress (`PACKAGE`).
        runtime_class: Class in the format's file that runs the files in `bench`, as a class of
            `bench/device/worker.py` does (`RUNTIME_CLASS`); None: `runtime` is one of those classes.
        computes_in: Precision of that class's floating-point arithmetic (`COMPUTES_IN`); None: the file's.
        source: The file that describes it.
    """

    name: str
    suffix: str
    title: str
    runtime: str
    beside: tuple[str, ...] = ()
    package: str | None = None
    runtime_class: str | None = None
    computes_in: str | None = None
    source: Path = Path()

    @property
    def artefact(self) -> str:
        """Returns the name of a student's file of this format in a benchmark."""
        return "student" if self.name == "onnx" else f"student ({self.title})"


def formats() -> list[Format]:
    """Lists the export formats: ONNX, safetensors, then the others by name."""
    names = sorted(discovery.names("format"), key=lambda name: (name != "onnx", name != "safetensors", name))
    known_formats = []
    for name in names:
        header = discovery.header("format", name)
        constants = header.constants
        known_formats.append(
            Format(
                name,
                constants["SUFFIX"],
                constants["TITLE"],
                constants["RUNTIME"],
                tuple(constants.get("BESIDE", ())),
                constants.get("PACKAGE"),
                constants.get("RUNTIME_CLASS"),
                constants.get("COMPUTES_IN"),
                header.source,
            )
        )
    return known_formats


def parts_of(file: Path) -> list[Path]:
    """Lists the files that belong to a format's file, as the weights beside a graph, and itself, last."""
    for known in formats():
        if known.suffix == file.suffix:
            return [*(file.with_suffix(suffix) for suffix in known.beside), file]
    return [file]


def format_of(file: Path) -> str | None:
    """Returns the format whose files have this one's suffix."""
    return next((known.name for known in formats() if known.suffix == file.suffix), None)


def gives_probabilities(name: str) -> bool:
    """Returns whether files of a format can have the output `probabilities` (`PROBABILITIES`)."""
    return bool(discovery.header("format", name).constants.get("PROBABILITIES", False))


def check_installed(names: Iterable[str], key: str) -> None:
    """Refuses formats that need a package which is not here.

    Args:
        names: Names of formats.
        key: The option or recipe key that names them, for the message.

    Raises:
        UserError: One does.
    """
    packages = {known.name: known.package for known in formats()}
    for name in names:
        package = packages[name]
        if package is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"{key}: {name} needs {package}: pip install 'kdcompress[{name}]'")
