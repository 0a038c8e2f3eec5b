"""The runtimes that worker.py knows: what each is called, which files it takes, what it computes in."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from kdcompress.deploy.files import formats
from kdcompress.errors import UserError, suggest


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime.

    Args:
        shown: In a document, where the precision stands beside it.
        suffix: Of the files it takes.
        computes_in: What floating-point parts are computed in, whatever the file says; None: as the file
            says.
        package: That must be installed, or None: it comes with kdcompress.
        also: Further suffixes of files it takes.
    """

    shown: str
    suffix: str
    computes_in: str | None = None
    package: str | None = None
    also: tuple[str, ...] = ()

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of all the files it takes."""
        return (self.suffix, *self.also)


RUNTIMES = {
    "onnxruntime": Runtime("onnxruntime", ".onnx"),
    "torch": Runtime("torch", ".safetensors", "fp32"),
    "torch-compile": Runtime("torch-compile", ".safetensors", "fp32"),
    "openvino": Runtime("openvino", ".onnx", "fp32", "openvino", (".xml",)),
    "openvino-bf16": Runtime("openvino", ".onnx", "bf16", "openvino", (".xml",)),
    "executorch": Runtime("executorch", ".pte", None, "executorch"),
}
EXPECTED = "an .onnx or a .safetensors file, the .xml of OpenVINO or the .pte of ExecuTorch"
"""Where a file has no suffix of these."""


def default_runtime(suffix: str) -> str | None:
    """Returns the runtime that files of this suffix are timed in, or None if no format has it."""
    return next((known.runtime for known in formats() if known.suffix == suffix), None)


def check_runtime(name: str) -> None:
    """Refuses a runtime that is unknown or not installed; `/path/to/file.py:ClassName` is the user's own.

    Raises:
        UserError: It is.
    """
    if name not in RUNTIMES:
        if ":" not in name:
            raise UserError(f"unknown runtime {name!r}{suggest(name, RUNTIMES)}")
        return
    package = RUNTIMES[name].package
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(f"the runtime {name!r} needs {package}: pip install 'kdcompress[{package}]'")


def takes(name: str, suffix: str) -> bool:
    """Whether a runtime takes files of this suffix; the user's own are taken at their word."""
    return name not in RUNTIMES or suffix in RUNTIMES[name].suffixes or default_runtime(suffix) == name


def shown(name: str) -> str:
    """The runtime in a document."""
    return RUNTIMES[name].shown if name in RUNTIMES else name


def precision(name: str, of_file: str) -> str:
    """What a file of this precision is computed in by this runtime: fp32, fp16, bf16, int8, int8+bf16.

    Args:
        name: The runtime.
        of_file: "fp32", "fp16" or "int8".
    """
    computes_in = RUNTIMES[name].computes_in if name in RUNTIMES else None
    if computes_in is None:
        return of_file
    if of_file == "int8":
        return "int8" if computes_in == "fp32" else f"int8+{computes_in}"
    return computes_in
