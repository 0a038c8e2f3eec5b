"""The page of one method: description, needs, options, presets, published and measured accuracy."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from kdcompress import discovery, methods
from kdcompress.methods.base import Method, Needs, find_method
from kdcompress.strict_yaml import to_yaml
from kdcompress.tasks import EMBEDDING

_READS = {
    "logits": "the logits",
    "pooled": "the pooled features",
    "stages": "the feature maps of the stages",
    "pre": "the feature maps before their activation",
}


def describe_method(name: str) -> dict[str, Any]:
    """Collects all that is known about a method.

    Args:
        name: A name that `kdcompress methods` lists.

    Returns:
        The document of schema `kdcompress.method/1`. Needs are those of the default options.

    Raises:
        UserError: No such method.
    """
    header = discovery.header("method", name)
    cls = find_method(name)
    config = cls.Config()
    needs = {
        field.name: sorted(value) if isinstance(value, frozenset) else getattr(value, "name", value)
        for field in dataclasses.fields(Needs)
        for value in [getattr(cls.needs(config), field.name)]
    }
    preparations = cls.preparations(config)
    measured = json.loads((Path(methods.__path__[0]) / "measured.json").read_text(encoding="utf-8"))
    row = measured["methods"].get(header.name)
    return {
        "schema": "kdcompress.method/1",
        "name": header.name,
        "kind": header.group,
        "summary": header.summary,
        "description": inspect.getdoc(inspect.getmodule(cls)),
        "details": inspect.getdoc(cls),
        "needs": needs,
        "preparation_epochs": sum(p.epochs for p in preparations) or None,
        "options": list(_options(cls)),
        "presets": {key: dataclasses.asdict(preset) for key, preset in cls.PRESETS.items()},
        "published": [dataclasses.asdict(figure) for figure in cls.FIGURES],
        "measured": row and {"setting": measured["setting"], "source": measured["source"], **row},
    }


def format_method(document: dict[str, Any]) -> str:
    """Writes the page as text that fits the terminal."""
    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    lines = [f"{document['name']} ({_KINDS[document['kind']]})", ""]
    for paragraph in f"{document['description']}\n\n{document['details']}".split("\n\n"):
        lines += [*textwrap.wrap(" ".join(paragraph.split()), width), ""]
    sections = {
        "Needs": _needs_lines(document),
        "Options (--set method.KEY=VALUE)": _option_lines(document["options"]),
        "Presets (--preset NAME)": _preset_lines(document["presets"]),
        "Published top-1 accuracy in percent": _published_lines(document["published"]),
        "Measured by this project": _measured_lines(document["measured"]),
    }
    for title, entries in sections.items():
        lines.append(title)
        for indent, text in entries:
            prefix = " " * indent
            lines += textwrap.wrap(
                text, width, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False
            )
        lines.append("")
    return "\n".join(lines[:-1])


_KINDS = {
    "offline": "offline: a trained teacher, then the student",
    "online": "online: several networks learn from each other",
    "self": "self-distillation: no second network",
}


def _options(cls: type[Method]) -> Iterator[dict[str, Any]]:
    for name, field in cls.Config.model_fields.items():
        default = cls.Config.model_construct().__dict__.get(name)
        yield {
            "name": name,
            "default": None if default is PydanticUndefined else default,
            "description": " ".join((field.description or "").split()),
        }


def _needs_lines(document: dict[str, Any]) -> Iterator[tuple[int, str]]:
    needs = document["needs"]
    if needs["teacher"]:
        yield 2, f"A teacher, of which it reads {_read(needs['read_of_teacher'])}."
    else:
        yield 2, "No teacher."
    if needs["peers"] is not None:
        yield 2, f"At least {needs['peers']} peer beside the student; copies of the student by default."
    yield 2, f"Of the student it reads {_read(needs['student'])}."
    yield 2, "Labels." if needs["labels"] else "No labels."
    if needs["unlabelled"]:
        yield 2, "Learns from images without a label, too."
    if needs["views"] > 1:
        seen = "both networks see that many times the images" if needs["teacher"] else "one for each network"
        yield 2, f"{needs['views']} views of each image: {seen}."
    if needs["task"] == EMBEDDING.name:
        yield 2, "Trains a backbone without a classifier."
    if document["preparation_epochs"] is not None:
        yield 2, f"First trains modules on the teacher for {document['preparation_epochs']} epochs."


def _read(names: list[str]) -> str:
    return " and ".join(_READS.get(name, name) for name in names)


def _option_lines(options: list[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    for option in options:
        yield 2, f"{option['name']}: {_value(option['default'])}"
        if option["description"]:
            yield 6, option["description"]
    if not options:
        yield 2, "none"


def _preset_lines(presets: dict[str, Any]) -> Iterator[tuple[int, str]]:
    for name, preset in presets.items():
        yield 2, name
        for section in ("method", "train", "optim"):
            if preset[section]:
                values = ", ".join(f"{key}={_value(value)}" for key, value in preset[section].items())
                yield 4, f"{section}: {values}"
        if preset["note"]:
            yield 4, " ".join(preset["note"].split())
    if not presets:
        yield 2, "none"


def _published_lines(figures: list[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    before = None
    for figure in figures:
        preset = f"--preset {figure['preset']}" if figure["preset"] else "settings differ from the presets"
        group = f"{figure['setting']}: {figure['source']} ({preset})"
        if group != before:
            yield 2, group
        before = group
        teacher = f"{figure['teacher']} to " if figure["teacher"] else ""
        yield 4, f"{figure['top1']:.2f}  {teacher}{figure['student']}"
    if not figures:
        yield 2, "none known"


def _measured_lines(row: dict[str, Any] | None) -> Iterator[tuple[int, str]]:
    if row is None:
        yield 2, "not measured"
        return
    gain = "" if row["gain_points"] is None else f", {row['gain_points']:+.2f} points against plain training"
    probe = " (linear probe of the backbone)" if row["by_probe"] else ""
    yield 2, f"{row['top1']:.2f} ± {row['sd']:.2f} % top-1{probe}{gain}"
    prepared = f" and {row['preparation_minutes']} for the preparation" if row["preparation_minutes"] else ""
    yield 2, f"{row['minutes']} minutes on one thread{prepared}, {row['peak_mb']:,} MB peak memory"
    yield 2, f"{row['setting']}; distinct training images: {row['images']} ({row['source']})"


def _value(value: Any) -> str:
    """Writes a value as it is typed after `--set KEY=`."""
    return to_yaml([value]).removeprefix("- ").strip() if not isinstance(value, list) else str(value)
