"""Networks of your own: python:package.module:function, behind --allow-code."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from kdcompress.errors import NetworkError, Uncuttable, WeightsError, suggest
from kdcompress.networks.families._chain import Chain
from kdcompress.networks.families._pretrained import Pretrained

CHANNELS = (1, 3)


def build(name: str, *, num_classes: int, channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Calls the user's function (or class) with those of the three arguments that its signature accepts.

    Args:
        name: `package.module:function`; the current folder is on the path while it is imported.
        num_classes: K; 0 asks for a backbone, whose output is its features. A function that does not take it
            is taken at its word.
        channels: C of the images.
        image_size: (H, W).

    Raises:
        NetworkError: It cannot be imported or called, or gives no `nn.Module`.
    """
    module_name, colon, function_name = name.partition(":")
    if (
        not colon
        or not function_name.isidentifier()
        or not all(map(str.isidentifier, module_name.split(".")))
    ):
        raise NetworkError(f"expected python:package.module:function, got 'python:{name}'")
    spec = f"python:{name}"
    with _current_folder_on_path():
        module = _import(module_name, spec)
        function = getattr(module, function_name, None)
        if function is None:
            public = [
                key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
            ]
            raise NetworkError(
                f"{spec}: {module_name} has no {function_name!r}{suggest(function_name, public)}"
            )
        if not callable(function):
            raise NetworkError(f"{spec}: {function_name!r} is a {type(function).__name__}, not a function")
        offered = {"num_classes": num_classes, "channels": channels, "image_size": image_size}
        arguments = _accepted(function, offered, spec)
        with _told_whose_fault(spec, "failed when it was called"):
            network = function(**arguments)
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{spec}: expected an nn.Module, got a {type(network).__name__}")
    return network


def source_file(name: str) -> Path | None:
    """Returns the file of a builder's module, without running any code; None: not found.

    Args:
        name: `package.module:function`.
    """
    first, *others = name.partition(":")[0].split(".")
    with _current_folder_on_path():
        found = importlib.util.find_spec(first)
    if found is None:
        return None
    if not others:
        return Path(found.origin) if found.origin is not None else None
    for folder in found.submodule_search_locations or ():
        path = Path(folder, *others)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def segments(name: str, network: nn.Module) -> Chain:
    """Always refused: where a user's network can be cut is not known.

    Raises:
        Uncuttable: Always.
    """
    raise Uncuttable(
        f"python:{name}: heads and branches are cut from networks of a known family, not from your own"
    )


def pretrained(name: str, enum_name: str, progress: bool, connect_s: float | None = None) -> Pretrained:
    """Always refused: there is no place where a user's network would have published weights.

    Raises:
        WeightsError: Always.
    """
    raise WeightsError(
        f"python:{name}: {enum_name!r} is not a file; a network of your own takes a .safetensors, .pt or "
        ".pth file, or loads its weights by itself"
    )


def _import(module_name: str, spec: str) -> ModuleType:
    try:
        with _told_whose_fault(spec, "failed while it was imported", let_pass=ModuleNotFoundError):
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise NetworkError(f"{spec}: there is no module {missing!r}, also not in {Path.cwd()}") from None
        raise NetworkError(f"{spec}: {module_name} imports {missing!r}, which is not installed") from None


def _accepted(function: Callable[..., Any], offered: dict[str, Any], spec: str) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in callables have none
        raise NetworkError(f"{spec}: its signature cannot be read; wrap it in a function") from None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind is not p.VAR_POSITIONAL
        and (p.name not in offered or p.kind is p.POSITIONAL_ONLY)
    ]
    if needed:
        raise NetworkError(
            f"{spec}: needs {', '.join(needed)}, but is called with num_classes, channels and image_size by "
            "name; give the rest defaults"
        )
    return {key: value for key, value in offered.items() if key in by_name}


@contextmanager
def _told_whose_fault(
    spec: str, what: str, let_pass: type[Exception] | tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turns whatever the user's code raises into one message with the place."""
    try:
        yield
    except let_pass:
        raise
    except Exception as error:  # the user's code may raise anything, and none of it is a bug of ours
        frames = traceback.extract_tb(error.__traceback__)
        place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise NetworkError(f"{spec}: {what}{place}: {type(error).__name__}: {error}") from error


@contextmanager
def _current_folder_on_path() -> Iterator[None]:
    folder = str(Path.cwd())
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    importlib.invalidate_caches()  # the file may be younger than the last look into this folder
    try:
        yield
    finally:
        sys.path.remove(folder)
