"""Reads the record of a run from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompress.data.input_spec import InputSpec
from kdcompress.data.split_name import TEST
from kdcompress.errors import UserError
from kdcompress.strict_yaml import read_yaml
from kdcompress.tasks import Task, task_of

READS = 1
"""The newest version of each schema that is understood here."""


@dataclass(frozen=True, slots=True)
class Record:
    """The files of one run.

    Args:
        folder: The run folder.
        recipe: The resolved recipe.
        recipe_text: The same, as it stands in the file.
        results: `results.json`.
        manifest: `manifest.json`; empty if the run has not got so far.
        log: The lines of `log.jsonl`, in order, and those of the baseline's run under the phase "baseline".
        gates: The entries of `gates.json`.
        bench: `bench.json`, or None if nothing was timed.
        config: `config.json`; empty without one.
        details: `details.json`; empty in a run of before there was one.
    """

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    results: dict[str, Any]
    manifest: dict[str, Any]
    log: tuple[dict[str, Any], ...]
    gates: tuple[dict[str, Any], ...]
    bench: dict[str, Any] | None
    config: dict[str, Any]
    details: dict[str, Any]

    @property
    def student(self) -> str:
        """`FAMILY/NAME`."""
        return str(self.recipe["student"]["model"])

    @property
    def teacher(self) -> str | None:
        """`FAMILY/NAME`, or None for a method without one."""
        section = self.recipe.get("teacher")
        return str(section["model"]) if section else None

    @property
    def class_names(self) -> list[str]:
        """By class number; empty if they are not known."""
        return [str(name) for name in self.config.get("label_names", [])]

    @property
    def task(self) -> Task:
        """The task of the network that shipped."""
        return task_of(self.config.get("num_classes", 1), self.config.get("task"))

    @property
    def input_spec(self) -> InputSpec | None:
        """The shipped network's input, or None if the run has no `config.json`."""
        return InputSpec.from_json(self.config["input"]) if "input" in self.config else None

    @property
    def test_name(self) -> str:
        """Name of the test split in texts: that of the folder that it was read from."""
        return str((self.manifest.get("data") or {}).get("test_split", TEST))

    @property
    def failed_gates(self) -> list[dict[str, Any]]:
        """Those that did not pass."""
        return [gate for gate in self.gates if not gate["passed"]]

    def has(self, name: str) -> bool:
        """Returns whether the run folder holds a file of this name."""
        return (self.folder / name).is_file()

    def seconds(self, phase: str) -> float | None:
        """Returns the training time of a phase, or None if the log has none of it."""
        spent = [
            line["seconds"] for line in self.log if line["phase"] == phase and line.get("seconds") is not None
        ]
        return sum(spent) if spent else None


def read_run(run: Path) -> Record:
    """Reads a run folder.

    Raises:
        UserError: It is no run that has come to results, or a file is damaged or from a newer kdcompress.
    """
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    for name in ("recipe.yaml", "results.json"):
        if not (run / name).is_file():
            raise UserError(
                f"{run}: has no {name}, so there are no results to report; finish the run with --resume"
            )
    return Record(
        folder=run,
        recipe=read_yaml(run / "recipe.yaml"),
        recipe_text=(run / "recipe.yaml").read_text(encoding="utf-8"),
        results=_json(run / "results.json"),
        manifest=_json(run / "manifest.json"),
        log=(*_lines(run / "log.jsonl"), *_baseline_lines(run / "baseline" / "log.jsonl")),
        gates=tuple(_json(run / "gates.json").get("gates", [])),
        bench=_json(run / "bench.json") or None,
        config=_json(run / "config.json"),
        details=_json(run / "details.json"),
    )


def _json(path: Path) -> dict[str, Any]:
    """Reads a document; an empty one if there is no such file."""
    return _document(path, path.read_text(encoding="utf-8"), "") if path.is_file() else {}


def _baseline_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the log lines of the baseline, which is a run with its own student."""
    return [{**line, "phase": line["phase"].replace("student", "baseline", 1)} for line in _lines(path)]


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_document(path, line, f", line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _document(path: Path, text: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}{where}: is not valid JSON: {error.msg}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path}{where}: expected a JSON object")
    schema = str(document.get("schema", ""))
    name, _, version = schema.rpartition("/")
    if not name.startswith("kdcompress.") or not version.isdigit():
        raise UserError(f"{path}{where}: unknown schema {schema!r}; it is no file of kdcompress")
    if int(version) > READS:
        raise UserError(f"{path}{where}: schema {schema!r} is newer than this kdcompress; update it")
    return document
