"""The files that another machine needs to carry a plan out: the plan's own, and the programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx

from kdcompress import cores
from kdcompress.atomic import sha256_of
from kdcompress.bench.cell import Artefact
from kdcompress.containment import contained_file
from kdcompress.deploy.files import parts_of
from kdcompress.deploy.onnx_file import all_tensors, read_onnx
from kdcompress.errors import UserError

JOB_SCHEMA = "kdcompress.bench-job/1"
_PACKAGE = Path(str(cores.__file__)).parent
_DEVICE = "bench/device"
PREFLIGHT_FILES = {
    "run.py": _PACKAGE / _DEVICE / "main.py",
    # A package that holds these files alone; its own __init__ would bring more.
    "kdcompress/__init__.py": _PACKAGE / "bench/__init__.py",
    **{
        f"kdcompress/{name}": _PACKAGE / name
        for name in (
            "cores.py", "bench/__init__.py", f"{_DEVICE}/__init__.py", f"{_DEVICE}/machine.py",
            f"{_DEVICE}/check.py",
        )
    },
}  # fmt: skip
"""The programs that check a machine; path there -> file here."""
DRIVER_FILES = {
    f"kdcompress/{_DEVICE}/{name}": _PACKAGE / _DEVICE / name for name in ("scheduler.py", "worker.py")
}
"""The programs that measure."""
NEEDS, JOB = "needs.json", "job.json"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A plan for a folder on another machine, with the files that it names.

    Args:
        plan: The plan; its paths are relative to that folder.
        sources: For each such path, the file here.
    """

    plan: dict[str, Any]
    sources: dict[str, Path]

    @property
    def size(self) -> int:
        """Size of the files in bytes."""
        return sum(file.stat().st_size for file in self.sources.values())

    def job(self, **more: Any) -> dict[str, Any]:
        """Makes the job.json that run.py carries out.

        Args:
            more: Further entries, which come back with the result.
        """
        files = {name: sha256_of(file) for name, file in self.sources.items()}
        return {"schema": JOB_SCHEMA, "plan": self.plan, "files": files, **more}


def bundle(plan: dict[str, Any]) -> Bundle:
    """Collects the files of a plan and makes its paths relative.

    Args:
        plan: The result of `plan.plan`, with absolute paths.

    Raises:
        UserError: A file of it cannot be read, or keeps its tensors outside of its folder or where the
            graph itself will be.
    """
    renamed: dict[str, str] = {}
    sources: dict[str, Path] = {}

    def remote_path(path: str | None) -> str | None:
        if path is None or path in renamed:
            return path and renamed[path]
        file, folder = Path(path), f"files/{len(renamed)}"
        # Names of our own: the names here may be anything, and may be private.
        renamed[path] = f"{folder}/model{file.suffix}"
        for part in parts_of(file):
            # The file itself was named by the user, or is ours; what belongs to it was not.
            sources[f"{folder}/model{part.suffix}"] = (
                part if part == file else contained_file(file, part.name)
            )
        if file.suffix == ".onnx":
            beside = _external_data(file, f"model{file.suffix}")
            sources.update({f"{folder}/{name}": source for name, source in beside.items()})
        return renamed[path]

    groups = list(dict.fromkeys(cell["group"] for cell in plan["cells"]))
    cells = [
        {
            **cell,
            **{key: remote_path(cell[key]) for key in ("file", "images", "reference")},
            "group": str(groups.index(cell["group"])),  # a network is called by its path here
        }
        for cell in plan["cells"]
    ]
    return Bundle({**plan, "cells": cells, "allow_code": False}, sources)


def needs_of(artefacts: Sequence[Artefact]) -> dict[str, Any]:
    """Lists the opsets and runtimes that device/check.py looks for.

    Args:
        artefacts: Artefacts in formats that can be sent.

    Raises:
        UserError: A file is no ONNX.
    """
    files = []
    for artefact in artefacts:
        if artefact.file.suffix != ".onnx":
            continue
        graph = read_onnx(artefact.file)
        opsets = [entry.version for entry in graph.opset_import if entry.domain in {"", "ai.onnx"}]
        files.append(
            {"name": artefact.file.name, "opset": max(opsets, default=1), "ir": int(graph.ir_version)}
        )
    used = sorted({runtime for artefact in artefacts for runtime in artefact.runtimes})
    return {"files": files, "runtimes": used}


def to_text(document: dict[str, Any]) -> str:
    """Formats the content of needs.json or job.json."""
    return json.dumps(document, indent=1) + "\n"


def _external_data(path: Path, graph: str) -> dict[str, Path]:
    """Finds the files that hold a graph's tensors, by their paths relative to its folder.

    Args:
        path: The graph.
        graph: Its own name there.

    Raises:
        UserError: One is not a regular file inside that folder, or would replace the graph.
    """
    locations = {
        entry.value: None
        for tensor in all_tensors(read_onnx(path))
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = {}
    for location in locations:
        files[str(PurePosixPath(location))] = contained_file(path, location)
        # Other machines may not tell capitals apart.
        if PurePosixPath(location).parts[0].casefold() == graph:
            raise UserError(
                f"{path}: keeps tensors in {location!r}, the name under which the graph itself is sent; save "
                "it with another location"
            )
    return files
