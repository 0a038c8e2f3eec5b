"""What travels to another machine: a plan with the files it names, and the programs that carry it out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx

from kdcompress import cores
from kdcompress.atomic import sha256_of
from kdcompress.bench.plan import Artefact
from kdcompress.containment import contained_file
from kdcompress.deploy.files import parts_of
from kdcompress.errors import UserError

JOB_SCHEMA = "kdcompress.bench-job/1"
_PACKAGE = Path(str(cores.__file__)).parent
SCOUTS = {
    "run.py": _PACKAGE / "bench/run.py",
    # A package that holds these files alone; its own __init__ would bring more.
    "kdcompress/__init__.py": _PACKAGE / "bench/__init__.py",
    **{
        f"kdcompress/{name}": _PACKAGE / name
        for name in ("cores.py", "bench/__init__.py", "bench/machine.py", "bench/preflight.py")
    },
}
"""The programs that look at a machine: of each path there, the file here."""
WORKMEN = {f"kdcompress/bench/{name}": _PACKAGE / "bench" / name for name in ("driver.py", "worker.py")}
"""The programs that measure."""
NEEDS, JOB = "needs.json", "job.json"


@dataclass(frozen=True, slots=True)
class Parcel:
    """A plan for a folder on another machine.

    Args:
        plan: Its files are relative to that folder.
        files: Of each such path, the file here.
    """

    plan: dict[str, Any]
    files: dict[str, Path]

    @property
    def size(self) -> int:
        """Of the files, in bytes."""
        return sum(file.stat().st_size for file in self.files.values())

    def job(self, **more: Any) -> dict[str, Any]:
        """The job.json that run.py carries out.

        Args:
            more: What else is to come back with its result.
        """
        files = {name: sha256_of(file) for name, file in self.files.items()}
        return {"schema": JOB_SCHEMA, "plan": self.plan, "files": files, **more}


def parcel(plan: dict[str, Any]) -> Parcel:
    """A plan of this machine, made fit to travel.

    Args:
        plan: As `plan.plan` gives it, with absolute paths.

    Raises:
        UserError: A file of it cannot be read, or keeps its tensors outside of its folder.
    """
    moved: dict[str, str] = {}
    files: dict[str, Path] = {}

    def there(path: str | None) -> str | None:
        if path is None or path in moved:
            return path and moved[path]
        file, folder = Path(path), f"files/{len(moved)}"
        # Names of our own: those of the files here are nobody's business there, and may be anything.
        moved[path] = f"{folder}/model{file.suffix}"
        for part in parts_of(file):
            # The file itself was named by the user, or is ours; what belongs to it was not.
            files[f"{folder}/model{part.suffix}"] = part if part == file else contained_file(file, part.name)
        if file.suffix == ".onnx":
            files.update({f"{folder}/{name}": source for name, source in _external_data(file).items()})
        return moved[path]

    groups = list(dict.fromkeys(cell["group"] for cell in plan["cells"]))
    cells = [
        {
            **cell,
            **{key: there(cell[key]) for key in ("file", "images", "reference")},
            "group": str(groups.index(cell["group"])),  # a network is called by its path here
        }
        for cell in plan["cells"]
    ]
    return Parcel({**plan, "cells": cells, "allow_code": False}, files)


def needs(artefacts: Sequence[Artefact]) -> dict[str, Any]:
    """What preflight.py has to look for.

    Args:
        artefacts: Of the formats that travel.

    Raises:
        UserError: A file is no ONNX.
    """
    files = []
    for artefact in artefacts:
        if artefact.file.suffix != ".onnx":
            continue
        graph = _graph(artefact.file)
        opsets = [entry.version for entry in graph.opset_import if entry.domain in {"", "ai.onnx"}]
        files.append(
            {"name": artefact.file.name, "opset": max(opsets, default=1), "ir": int(graph.ir_version)}
        )
    used = sorted({runtime for artefact in artefacts for runtime in artefact.runtimes})
    return {"files": files, "runtimes": used}


def text(document: dict[str, Any]) -> str:
    """As it is written into needs.json and job.json."""
    return json.dumps(document, indent=1) + "\n"


def _graph(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except Exception:  # protobuf's own, which has no name that one could rely on
        raise UserError(f"{path}: is damaged, or no ONNX file") from None


def _external_data(path: Path) -> dict[str, Path]:
    """The files that hold a graph's tensors, by their paths relative to its folder.

    Raises:
        UserError: One is not a regular file inside that folder.
    """
    files = {}
    for tensor in _graph(path).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
            files[str(PurePosixPath(location))] = contained_file(path, location)
    return files
