"""The runtimes of device/worker.py and of the export formats: title, files and arithmetic of each."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from kdcompress.deploy.files import formats
from kdcompress.errors import UserError, suggest


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime.

    Args:
        title: Its name in a document, where the precision stands beside it.
        suffix: Suffix of the files it takes.
        computes_in: Precision of its floating-point arithmetic, whatever the file's; None: the file's.
        package: Package that must be installed; None: it comes with kdcompress.
        also: Further suffixes of files it takes.
    """

    title: str
    suffix: str
    computes_in: str | None = None
    package: str | None = None
    also: tuple[str, ...] = ()

    @property
    def suffixes(self) -> tuple[str, ...]:
        """All suffixes of files it takes."""
        return (self.suffix, *self.also)


RUNTIMES = {
    "onnxruntime": Runtime("onnxruntime", ".onnx"),
    "torch": Runtime("torch", ".safetensors", "fp32"),
    "torch-compile": Runtime("torch-compile", ".safetensors", "fp32"),
    "openvino": Runtime("openvino", ".onnx", "fp32", "openvino", (".xml",)),
    "openvino-bf16": Runtime("openvino", ".onnx", "bf16", "openvino", (".xml",)),
    "executorch": Runtime("executorch", ".pte", None, "executorch"),
}
"""Those of device/worker.py."""


def known_runtimes() -> dict[str, Runtime]:
    """Returns all runtimes by name, those that an export format's file defines included."""
    own = {
        known.runtime: Runtime(known.title, known.suffix, known.computes_in, known.package)
        for known in formats()
        if known.runtime_class is not None
    }
    return RUNTIMES | own


def program(name: str) -> str:
    """Returns what device/worker.py is told to run: a class of its own, or `/path/to/file.py:ClassName`."""
    for known in formats():
        if known.runtime == name and known.runtime_class is not None:
            return f"{known.source}:{known.runtime_class}"
    return name


def expected_files() -> str:
    """Describes the files that can be timed, for the message about another one."""
    return "a file that ends in " + ", ".join(f"{known.suffix} ({known.title})" for known in formats())


def default_runtime(suffix: str) -> str | None:
    """Returns the runtime that files of this suffix are timed in, or None if no format has it."""
    return next((known.runtime for known in formats() if known.suffix == suffix), None)


def check_runtime(name: str) -> None:
    """Refuses a runtime that is unknown or not installed; `/path/to/file.py:ClassName` is the user's own.

    Raises:
        UserError: It is.
    """
    runtimes = known_runtimes()
    if name not in runtimes:
        if ":" not in name:
            raise UserError(f"unknown runtime {name!r}{suggest(name, runtimes)}")
        return
    package = runtimes[name].package
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"the runtime {name!r} needs {package}: pip install 'kdcompress[{package}]'")


def check_remote_runtime(name: str, target: str) -> None:
    """Refuses a runtime that other machines are not expected to have.

    Args:
        name: Name of the runtime.
        target: The target as the user gave it, for the message.

    Raises:
        UserError: It is not expected there.
    """
    remote = [key for key, runtime in RUNTIMES.items() if runtime.suffix == ".onnx"]
    if name in remote:
        return
    if name in known_runtimes():
        raise UserError(
            f"{target}: the runtime {name!r} needs more than a target must have (Python, numpy, "
            f"onnxruntime); give .onnx files, and of the runtimes {', '.join(remote)}"
        )
    if ":" in name:
        raise UserError(f"{target}: a runtime of your own is not sent to a target; use {', '.join(remote)}")
    raise UserError(f"unknown runtime {name!r}{suggest(name, remote)}")


def takes(name: str, suffix: str) -> bool:
    """Tells if a runtime takes files of this suffix; a runtime of the user's own takes all."""
    runtimes = known_runtimes()
    return name not in runtimes or suffix in runtimes[name].suffixes or default_runtime(suffix) == name


def title(name: str) -> str:
    """Names a runtime as in a document."""
    runtimes = known_runtimes()
    return runtimes[name].title if name in runtimes else name


def precision(name: str, of_file: str) -> str:
    """Tells the precision that a runtime computes a file in: fp32, fp16, bf16, int8, int8+bf16.

    Args:
        name: Name of the runtime.
        of_file: Precision of the file: "fp32", "fp16" or "int8".
    """
    runtimes = known_runtimes()
    computes_in = runtimes[name].computes_in if name in runtimes else None
    if computes_in is None:
        return of_file
    if of_file == "int8":
        return "int8" if computes_in == "fp32" else f"int8+{computes_in}"
    return computes_in
