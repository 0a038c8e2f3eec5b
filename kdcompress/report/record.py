"""Reads the record of a run from its folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcompress.data.input_spec import InputSpec
from kdcompress.data.split_name import TEST, keep_words
from kdcompress.documents import (
    check_document,
    check_tree,
    parse_document,
    read_bytes,
    read_document,
    read_text,
)
from kdcompress.errors import UserError
from kdcompress.recipe import write_notice
from kdcompress.schemas.bench import Bench
from kdcompress.schemas.config import Config
from kdcompress.schemas.details import Details
from kdcompress.schemas.recipe import RecordedRecipe
from kdcompress.schemas.results import Results
from kdcompress.schemas.run import Gates, LogLine, Manifest
from kdcompress.strict_yaml import read_yaml
from kdcompress.tasks import Task, task_of

MOST_LOG_BYTES = 16 << 20
"""Largest `log.jsonl`: three hundred bytes for each of fifty thousand epochs."""


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

    def with_marked_words(self) -> Record:
        """Returns the record for a page: the user's own texts are those that `name_split` leaves alone."""
        config, manifest = dict(self.config), dict(self.manifest)
        if "label_names" in config:
            config["label_names"] = keep_words(config["label_names"])
        if "command" in manifest:
            manifest["command"] = keep_words(manifest["command"])
        if manifest.get("data"):
            manifest["data"] = {**manifest["data"], "name": keep_words(manifest["data"]["name"])}
        return replace(
            self,
            recipe=keep_words(self.recipe),
            recipe_text=keep_words(self.recipe_text),
            config=config,
            manifest=manifest,
        )

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
    recipe_text = read_text(run / "recipe.yaml")
    recipe = read_yaml(run / "recipe.yaml")
    check_tree(recipe, str(run / "recipe.yaml"))
    check_document(recipe, str(run / "recipe.yaml"), RecordedRecipe)
    record = Record(
        folder=run,
        recipe=recipe,
        recipe_text=recipe_text,
        results=read_document(run / "results.json", Results),
        manifest=_document(run / "manifest.json", Manifest),
        log=(*read_log(run / "log.jsonl"), *_baseline_lines(run / "baseline" / "log.jsonl")),
        gates=tuple(_document(run / "gates.json", Gates).get("gates", [])),
        bench=_document(run / "bench.json", Bench) or None,
        config=_document(run / "config.json", Config),
        details=_document(run / "details.json", Details),
    )
    _check_classes(record)
    return record


def read_log(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a `log.jsonl`; none if there is no such file.

    A last line without its end is what a killed process leaves: it is left out, with a note on stderr.

    Raises:
        UserError: Another line is damaged.
    """
    if not path.is_file():
        return []
    *whole, rest = read_bytes(path, MOST_LOG_BYTES).split(b"\n")
    if rest:
        write_notice(f"{path}: its last line is not complete; it is left out")
    lines = []
    for number, content in enumerate(whole, 1):
        where = f"{path}, line {number}"
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: is damaged: byte {error.start} is no UTF-8 text") from None
        if text.strip():
            lines.append(parse_document(text, where, LogLine))
    return lines


def _document(path: Path, schema: type[Bench | Config | Details | Gates | Manifest]) -> dict[str, Any]:
    """Reads a document; an empty one if there is no such file."""
    return dict(read_document(path, schema)) if path.exists() else {}


def _baseline_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the log lines of the baseline, which is a run with its own student."""
    return [{**line, "phase": line["phase"].replace("student", "baseline", 1)} for line in read_log(path)]


def _check_classes(record: Record) -> None:
    """Refuses results that are not of the classes of `config.json`.

    Raises:
        UserError: They are of another number of classes.
    """
    names, student = record.class_names, record.results["student"]
    shares, number = student.get("per_class"), student.get("single_class")
    if names and ((shares and len(shares) != len(names)) or (number is not None and number >= len(names))):
        raise UserError(
            f"{record.folder / 'results.json'}: is damaged: it is not of the {len(names)} classes that "
            "config.json names"
        )
