"""Plugins: a plugin is a file, and its file name is its name.

`names` and `header` read file names, docstrings and literal constants without importing anything heavy, so
the listings start at once; `load` imports one plugin's file.
"""

from __future__ import annotations

import ast
import functools
import importlib
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from kdcompress.errors import UserError, suggest

Kind = Literal["method", "family", "dataset", "format"]

_PACKAGE = Path(__file__).parent
_PARSING = threading.Lock()
"""Python 3.11 raises a SystemError when two threads parse at once (CPython issue 106905)."""
_FOLDERS: dict[str, dict[str, str]] = {
    # kind -> {folder below the package: what the listing calls it}
    "method": {"methods/offline": "offline", "methods/online": "online", "methods/selfkd": "self"},
    "family": {"networks/families": ""},
    "dataset": {"data/datasets": ""},
    "format": {"deploy/formats": ""},
}


@dataclass(frozen=True, slots=True)
class Header:
    """Name, summary and constants of a plugin, read from its file without importing it.

    Args:
        name: The file name with hyphens for underscores (`fashion_mnist.py` is `fashion-mnist`).
        summary: First line of its docstring, without the full stop.
        group: offline, online or self for methods; otherwise empty.
        constants: {name in capitals: value} of the module-level literals.
        source: Its file.
    """

    name: str
    summary: str
    group: str
    constants: dict[str, Any]
    source: Path


def names(kind: Kind) -> list[str]:
    """Returns the names of all plugins of a kind, sorted."""
    return sorted(_files(kind))


def header(kind: Kind, name: str) -> Header:
    """Reads a plugin's docstring and literal constants without importing it.

    Raises:
        UserError: No such plugin; the message suggests or lists the choices.
    """
    path, group = _find(kind, name)
    summary, constants = _read(path, path.stat().st_mtime_ns)
    return Header(name, summary, group, dict(constants), path)


def load(kind: Kind, name: str) -> ModuleType:
    """Imports a plugin's file.

    Raises:
        UserError: No such plugin; the message suggests or lists the choices.
    """
    path, _ = _find(kind, name)
    dotted = ".".join(("kdcompress", *path.relative_to(_PACKAGE).with_suffix("").parts))
    return importlib.import_module(dotted)


def load_class(kind: Kind, name: str, attribute: str) -> type[Any]:
    """Imports a plugin's file and returns the one class defined in it that has an attribute.

    Args:
        kind: The kind of plugin.
        name: The name of the plugin.
        attribute: Attribute that distinguishes the plugin's class from other classes in the file.

    Raises:
        UserError: No such plugin; the message suggests or lists the choices.
    """
    module = load(kind, name)
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and hasattr(value, attribute)
    ]
    assert len(own) == 1, f"{module.__name__} must define one class with {attribute}, defines {len(own)}"
    return own[0]


def _files(kind: Kind) -> dict[str, tuple[Path, str]]:
    return {
        path.stem.replace("_", "-"): (path, group)
        for folder, group in _FOLDERS[kind].items()
        for path in (_PACKAGE / folder).glob("*.py")
        if not path.stem.startswith("_")
    }


@functools.cache  # one run asks for the same few files hundreds of times, and parsing takes milliseconds
def _read(path: Path, mtime_ns: int) -> tuple[str, dict[str, Any]]:
    """Parses a file's summary and literal constants; a file that has changed is parsed again."""
    with _PARSING:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").split("\n", 1)[0].rstrip(".")
    constants: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id.isupper():
            try:
                constants[target.id] = ast.literal_eval(value)
            except ValueError:
                continue  # a computed constant is no part of the header
    return summary, constants


def _find(kind: Kind, name: str) -> tuple[Path, str]:
    files = _files(kind)
    key = str(name).replace("_", "-")
    if key not in files:
        raise UserError(f"unknown {kind} {name!r}{suggest(name, files)}")
    return files[key]
