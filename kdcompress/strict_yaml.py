"""Strict YAML: reading runs no code and expands no aliases, and numbers follow YAML 1.2."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from kdcompress.errors import RecipeError
from kdcompress.plain_text import printable

_COMMENT_COLUMN = 44
"""Column of the comments at most, so that a comment fits on a line of 80 characters."""
MAX_BYTES = 1 << 17
"""Larger files are refused; a recipe has a few KiB."""


def read_yaml(path: Path) -> Any:
    """Reads one YAML document; tags, aliases and duplicate keys are refused.

    Numbers follow YAML 1.2: `1e-3` is a number; `010`, `1:30` and `2020-01-01` are text.

    Raises:
        RecipeError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecipeError(str(path), ["larger than 128 KiB, so it is no recipe"])
        text = content.decode("utf-8")
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise RecipeError(str(path), ["is not UTF-8 text"]) from None
    try:
        return _parse(text)
    except _NotAllowed as error:
        raise RecipeError(str(path), [f"{error.where}{error}"]) from None


def parse_value(text: str) -> tuple[Any, str | None]:
    """Parses the value of `--set key=value`.

    Returns:
        (the value, None), or (None, what is wrong with it).
    """
    try:
        return _parse(text), None
    except _NotAllowed as error:
        return None, str(error)


def to_yaml(document: Any) -> str:
    """Writes the document as YAML that `read_yaml` reads back to an equal one."""
    return _dump(document)


def to_commented_yaml(document: dict[str, Any], comments: Mapping[str, str]) -> str:
    """Writes the document as YAML with a trailing comment on each value.

    Args:
        document: Sections, values and lists of either.
        comments: {dotted path of a value: its comment}.
    """
    # What is no printable character stands in double quotes, where an escape is YAML.
    lines = [(printable(text), comments.get(path, "")) for text, path in _lines(document)]
    width = min(_COMMENT_COLUMN, max((len(text) for text, comment in lines if comment), default=0))
    return "".join(f"{text:<{width}}  # {comment}\n" if comment else f"{text}\n" for text, comment in lines)


def _lines(document: dict[str, Any], indent: str = "", above: str = "") -> Iterator[tuple[str, str]]:
    """Yields each line of the YAML with the dotted path of its value ('' for a section)."""
    for key, value in document.items():
        path = f"{above}{key}"
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:", ""
            yield from _lines(value, f"{indent}  ", f"{path}.")
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            yield f"{indent}{key}:", ""
            for number, entry in enumerate(value):
                (text, first), *more = _lines(entry, f"{indent}  ", f"{path}.{number}.")
                yield f"{indent}- {text.lstrip()}", first
                yield from more
        else:
            # One line each: lists in brackets, long text unfolded, line breaks as escapes.
            style = '"' if isinstance(value, str) and printable(value) != value else None
            text = _dump([value], default_flow_style=True, default_style=style, width=math.inf)
            yield f"{indent}{key}: {text.strip()[1:-1]}", path


def _dump(document: Any, **options: Any) -> str:
    settings = {"sort_keys": False, "allow_unicode": True, "width": 100, **options}
    return str(yaml.dump(document, Dumper=_Dumper, **settings))


class _NotAllowed(Exception):
    """A problem of the text and its place."""

    def __init__(self, problem: str, mark: Any = None) -> None:
        super().__init__(problem)
        self.where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""


_NUMBERS = {
    # PyYAML follows YAML 1.1, where 1e-3 is text, 010 is 8, 1:30 is 90 and 2020-01-01 a date.
    "int": (re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), "-+0123456789"),
    "float": (
        re.compile(
            r"^[-+]?(([0-9][0-9_]*\.?|\.[0-9])[0-9_]*[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?"
            r"|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
        ),
        "-+0123456789.",
    ),
}


class _Loader(yaml.SafeLoader):
    # A copy: all loaders of the process share PyYAML's own table.
    yaml_implicit_resolvers: dict[str, Any] = {  # noqa: RUF012  (a class attribute of PyYAML)
        first: [(tag, pattern) for tag, pattern in entries if tag.rsplit(":", 1)[1] in {"bool", "null"}]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            # A few nested aliases expand to gigabytes, and no recipe needs one.
            raise _NotAllowed("aliases (*name) are not allowed", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _NotAllowed(f"tags ({event.tag}) are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _NotAllowed(f"keys are text, not {key!r}", key_node.start_mark)
            if key in keys:
                raise _NotAllowed(f"the key {key!r} stands twice", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, (_pattern, _firsts) in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, list(_firsts))
    # The writer quotes text that either version of YAML reads as a number.
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, list(_firsts))


def _parse(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        if error.problem == "but found another document":
            raise _NotAllowed("a second document begins; a recipe is one", error.problem_mark) from None
        raise _NotAllowed(str(error.problem), error.problem_mark) from None
    except RecursionError:
        raise _NotAllowed("is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise _NotAllowed(f"is not valid YAML: {str(error).splitlines()[0]}") from None
