"""Builds the page about recipes, recipe.md, from the keys that the schema documents."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import annotated_types
from pydantic.fields import FieldInfo

from kdcompress.config import Section
from kdcompress.recipe import schema
from kdcompress.recipe.network_sections import CacheSection, InputSection, NetworkSection, TeacherSection

FILE = Path(__file__).with_name("recipe.md")
SECTIONS: dict[str, type[Section]] = {
    "data": schema.DataSection,
    "data.extra": schema.ExtraSection,
    "student": schema.StudentSection,
    "teacher": TeacherSection,
    "teacher.input": InputSection,
    "teacher.cache": CacheSection,
    "peers.N": NetworkSection,
    "pseudo_labels": schema.PseudoLabelsSection,
    "train": schema.TrainSection,
    "optim": schema.OptimSection,
    "export": schema.ExportSection,
    "export.int8": schema.Int8Section,
    "bench": schema.BenchSection,
}
INTRODUCTION = """# Recipes

A recipe is a YAML file that describes a run. This is the shipped one called `quickstart`:

```yaml
{quickstart}
```

`kdcompress recipes` lists the shipped ones. To make your own, start from one of them:

```sh
kdcompress show resnet101-to-resnet18 > mine.yaml
kdcompress distill --recipe ./mine.yaml --data ./images
```

`show` writes every value. A file of your own needs only `student.model`, `method.name`, `train.epochs` and
`optim.lr`, and what differs from the defaults below. `--set KEY=VALUE` changes one value for a run, with the
names of the first column: `--set optim.lr=0.05`, `--set teacher.cache.views=8`,
`--set peers.0.model=cifar/resnet8`. An unknown key or value is an error before anything is written.
Short forms: `data.extra: PATH`, `export.int8: true`, and a bare name for a peer or `pseudo_labels.method`.
[Where each value comes from](methods.md#where-each-value-comes-from) says which of several places wins.

Generated from the schema by `python docs/generate_reference.py`.
"""
TYPES = {int: "whole number", float: "number", str: "text", bool: "true, false"}


def page() -> str:
    """Returns the page: what a recipe is, and a table for each of its sections."""
    parts = [
        INTRODUCTION.format(quickstart=_quickstart()),
        _table("Keys outside of sections", "", schema.Recipe),
    ]
    parts += [_table(f"`{name}`", f"{name}.", section) for name, section in SECTIONS.items()]
    return "\n".join(parts)


def _quickstart() -> str:
    file = Path(__file__).parents[1] / "recipes" / "quickstart.yaml"
    lines = file.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def _table(title: str, prefix: str, section: type[Section]) -> str:
    rows = [
        [f"`{prefix}{name}`", _values(field), _default(prefix + name, field), _cell(field.description or "")]
        for name, field in section.model_fields.items()
        if prefix or field.description
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(
        [f"## {title}", "", "| key | values | default | meaning |", "|---|---|---|---|", *lines, ""]
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(key: str, field: FieldInfo) -> str:
    if key == "name":
        return "the file's name"
    if field.is_required():
        return "needed"
    value = field.default
    if isinstance(value, Section):
        return "its defaults"
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(field: FieldInfo) -> str:
    kinds = [_kind(part) for part in _parts(field.annotation)]
    bounds = _bounds(field.metadata)
    return _cell(", ".join(dict.fromkeys(filter(None, kinds))) + (f" {bounds}" if bounds else ""))


def _parts(annotation: Any) -> list[Any]:
    """Returns the alternatives of an annotation; None is told by the default and the meaning."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [part for part in typing.get_args(annotation) if part is not type(None)]
    return [annotation]


def _kind(annotation: Any) -> str:
    """Names the values of one alternative."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        bounds = _bounds([bound for each in arguments[1:] for bound in getattr(each, "metadata", [each])])
        return f"{_kind(arguments[0])} {bounds}".rstrip()
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return "list; each: " + " or ".join(_kind(part) for part in _parts(arguments[0]))
    if origin is dict:
        return "section"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return TYPES[annotation]


def _bounds(metadata: list[Any]) -> str:
    """Names the bounds of a number, such as `from 1 to 64`."""
    low = next((f"from {b.ge}" for b in metadata if isinstance(b, annotated_types.Ge)), "")
    low = low or next((f"above {b.gt}" for b in metadata if isinstance(b, annotated_types.Gt)), "")
    high = next((f"to {b.le}" for b in metadata if isinstance(b, annotated_types.Le)), "")
    high = high or next((f"below {b.lt}" for b in metadata if isinstance(b, annotated_types.Lt)), "")
    return f"{low} {high}".strip()
