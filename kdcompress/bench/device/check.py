"""Checks that a machine can carry out a plan, before anything is timed.

This file stands alone with machine.py and cores.py (standard library; Python 3.8 and newer); numpy and the
runtimes are imported by `look`. needs.json is `{"files": [{"name", "opset", "ir"}], "runtimes": [...]}`.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from typing import Any, Dict, List, Optional

from kdcompress.bench.device import machine

LEAST_EXPORTED = 18
"""The oldest opset that `export --opset` writes."""
_OLD_OPSET = 7
_OLD_IR = 4
"""Every onnxruntime for Python 3.8 and newer reads these."""


def look(needs: Dict[str, Any], folder: str) -> Dict[str, Any]:
    """Reads the facts of the machine and lists what it lacks.

    Args:
        needs: Content of needs.json.
        folder: Folder of the plan's files.

    Returns:
        `{"facts", "warnings", "free": bytes, "problems"}`; each problem is for `sentence`.
    """
    facts = machine.facts()
    problems: List[Dict[str, Any]] = []
    for package in ("numpy", "onnxruntime"):
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name == package
            problems.append({"kind": "package", "package": package, "why": None if absent else str(error)})
            break  # onnxruntime without numpy fails too, and says less
        facts["runtimes"].update({package: module.__version__} if package != "numpy" else {})
    else:
        problems += _version_problems(module, needs["files"])
    if any(name.startswith("openvino") for name in needs["runtimes"]):
        if importlib.util.find_spec("openvino") is None:
            problems.append({"kind": "package", "package": "openvino", "why": None})
    free = shutil.disk_usage(folder).free
    return {"facts": facts, "warnings": machine.load_warnings(), "free": free, "problems": problems}


def sentence(problem: Dict[str, Any], where: str) -> str:
    """Formats a problem as a sentence that says what to change.

    Args:
        problem: A problem that `look` gives.
        where: "on pi5", or "here".
    """
    if problem["kind"] == "package":
        package = problem["package"]
        if problem["why"] is None:
            return "there is no %s %s: install it (python3 -m pip install %s)" % (package, where, package)
        why = " ".join(problem["why"].split())
        return "%s cannot be imported %s: %s" % (package, where, why)
    own = "onnxruntime %(version)s %%s" % problem % where
    if problem["kind"] == "opset":
        limit = "supports opset <= %(newest)d; %(file)s uses %(asked)d. " % problem
        if problem["newest"] >= LEAST_EXPORTED:
            return own + " " + limit + "Export again with --opset %(newest)d" % problem
        return own + " " + limit + "Install a newer onnxruntime " + where
    if problem["kind"] == "ir":
        limit = "reads ONNX IR versions <= %(newest)d; %(file)s is of %(asked)d. " % problem
        return own + " " + limit + "Install a newer onnxruntime " + where
    return own + " does not work: " + " ".join(problem["why"].split())


def tiny_model(opset: int, ir: int) -> bytes:
    """Makes an ONNX file that returns its input, of this opset and IR version (at most 127 each).

    The bytes are those of a file written by the package `onnx`, which a board does not have: a graph "g" with
    the node Identity from x to y, both float32 of shape [1].
    """
    return (
        b"\x08" + bytes([min(ir, 127)]) + b':7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01g'
        b"Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
        b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01"
        b"B\x04\n\x00\x10" + bytes([min(opset, 127)])
    )  # fmt: skip


def _version_problems(library: Any, files: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Lists the opset and IR version that onnxruntime refuses, by trying."""
    version = library.__version__
    failure = _load_error(library, _OLD_OPSET, _OLD_IR)
    if failure is not None:
        return [{"kind": "broken", "version": version, "why": failure}]
    problems = []
    for key in ("opset", "ir"):

        def refused(number: int, is_opset: bool = key == "opset") -> bool:
            opset, ir = (number, _OLD_IR) if is_opset else (_OLD_OPSET, number)
            return _load_error(library, opset, ir) is not None

        newest = max(files, key=lambda file: int(file[key]), default=None)
        if newest is None or not refused(newest[key]):
            continue
        read = next(n for n in range(newest[key] - 1, 0, -1) if not refused(n))
        problems.append(
            {"kind": key, "version": version, "file": newest["name"], "asked": newest[key], "newest": read}
        )
    return problems


def _load_error(library: Any, opset: int, ir: int) -> Optional[str]:
    options = library.SessionOptions()
    options.log_severity_level = 4
    try:
        library.InferenceSession(tiny_model(opset, ir), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, of which old versions have fewer
        return str(error) or type(error).__name__
    return None
