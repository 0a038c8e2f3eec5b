"""Turns the validation errors of a recipe into sentences: `dotted.path: what is wrong; what to change`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from kdcompress.config import CANDIDATE_NAME, RECIPE_NAME, SHA256
from kdcompress.errors import suggest

MOST_PROBLEMS = 50
"""Problems of one document that are described."""
_SHOWN = 60
"""Characters of a wrong value that a message shows."""

_KINDS = {
    "int_type": "int", "int_from_float": "int", "int_parsing": "int", "float_type": "float",
    "string_type": "text", "bool_type": "true or false", "list_type": "a list", "dict_type": "a section",
    "model_type": "a section", "finite_number": "a finite number",
}  # fmt: skip
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"), "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"), "less_than": ("lt", "less than"),
}  # fmt: skip


_PATTERNS = {
    RECIPE_NAME: "letters, digits, '.', '_' and '-', with a letter or digit first",
    CANDIDATE_NAME: "best, last, ensemble or the name of a candidate (small letters, digits and '_')",
    SHA256: "64 hexadecimal digits in small letters",
}


def describe(
    error: ValidationError, model: type[BaseModel], prefix: str = "", other_keys: Iterable[str] = ()
) -> list[str]:
    """Writes each problem of a pydantic error as one line.

    Args:
        error: The error of validating `model`.
        model: The section that was validated.
        prefix: Dotted path of the section, if it is not the whole recipe.
        other_keys: Dotted paths of all keys, to suggest one for an unknown key.
    """
    places = tuple(other_keys)
    grouped: dict[str, list[Any]] = {}
    for item in error.errors():
        dotted = ".".join(str(part) for part in [*filter(None, [prefix]), *_path(item)])
        grouped.setdefault(dotted, []).append(item)
    # The path of a problem above another one is a union's other member; the deeper one is more exact.
    above = {dotted[:at] for dotted in grouped for at, mark in enumerate(dotted) if mark == "."}
    kept = {dotted: items for dotted, items in grouped.items() if dotted not in above}
    shown = itertools.islice(kept.items(), MOST_PROBLEMS)
    lines = [f"{dotted}: {_sentence(dotted, items, model, places)}" for dotted, items in shown]
    return lines + [f"and {len(kept) - len(lines):,} more"] * (len(kept) > len(lines))


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields the dotted paths of all keys of a section and its sub-sections, except lists of sections."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path
        for member in (field.annotation, *getattr(field.annotation, "__args__", ())):
            # `list[NetworkSection]` has it as an argument too, but its keys need a number between.
            origin = getattr(field.annotation, "__origin__", None)
            if isinstance(member, type) and issubclass(member, BaseModel) and origin is not list:
                yield from keys(member, f"{path}.")


def _path(item: Mapping[str, Any]) -> list[Any]:
    """Returns the path of a problem without the union members that pydantic inserts."""
    *above, last = item["loc"] or ("",)
    path = [part for part in above if not _is_union_member(part)]
    # An unknown key stands for itself, whatever it is called.
    return path if item["type"] != "extra_forbidden" and _is_union_member(last) else [*path, last]


def _is_union_member(part: Any) -> bool:
    # 'int', 'constrained-int', "literal['all']", 'list[float]', 'CacheSection'
    return isinstance(part, str) and (
        part in {"int", "float", "str", "bool"}
        or part.startswith("constrained-")
        or "[" in part
        or (part[:1].isupper() and part.endswith("Section"))
    )


def _sentence(dotted: str, items: list[Any], model: type[BaseModel], other_keys: tuple[str, ...]) -> str:
    item = items[0]
    if item["type"] == "extra_forbidden":
        return f"unknown key{_meant(_path(item), model, other_keys)}"
    if item["type"] == "missing":
        return "required"
    expected = " or ".join(dict.fromkeys(_expected(each) for each in items))
    hint = ""
    if len(items) == 1 and item["type"] in {"model_type", "dict_type"} and isinstance(item["input"], str):
        section = _section_at(model, _path(item))
        hint = f"; did you mean {dotted}.{next(iter(section.model_fields)) if section else 'name'}?"
    return f"expected {expected}, got {_shown(item['input'])}{hint}"


def _expected(item: Mapping[str, Any]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind in _KINDS:
        return _KINDS[kind]
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        bound = context[key]
        return f"{words} {int(bound) if bound == int(bound) else bound}"
    if kind == "literal_error":
        choices = context["expected"].replace(" or ", ", ")
        return f"one of {choices}" if ", " in choices else str(choices)
    if kind == "too_short":
        return f"at least {context['min_length']} " + ("entry" if context["min_length"] == 1 else "entries")
    if kind == "string_pattern_mismatch":
        return _PATTERNS[context["pattern"]]
    # A validator of kdcompress says in its message what is expected.
    return str(item["msg"]).removeprefix("Value error, ").removeprefix("expected ")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _meant(path: list[Any], model: type[BaseModel], other_keys: tuple[str, ...]) -> str:
    wrong = str(path[-1])
    same = [key for key in other_keys if key.rsplit(".", 1)[-1] == wrong]
    if same:
        highest = min(key.count(".") for key in same)
        same = [key for key in same if key.count(".") == highest]
        return f"; did you mean {' or '.join(repr(key) for key in same[:3])}?"
    section = _section_at(model, path[:-1])
    return suggest(wrong, section.model_fields if section else ())


def _section_at(model: type[BaseModel], path: list[Any]) -> type[BaseModel] | None:
    here: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int):
            continue
        if here is None or part not in here.model_fields:
            return None
        annotation = here.model_fields[part].annotation
        members = [annotation, *getattr(annotation, "__args__", ())]
        here = next((m for m in members if isinstance(m, type) and issubclass(m, BaseModel)), None)
    return here
