"""Reads the JSON documents that this project wrote, or somebody else in its name.

A document comes from anywhere: a damaged disk, a colleague, another machine. It is read from a regular
file, bounded in size and depth, and checked against its schema (`kdcompress.schemas`); whoever uses it
afterwards finds every key it reads with a value of the right kind. Keys of a newer version stay in it.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from kdcompress.containment import open_in_folder
from kdcompress.errors import KdcompressError, UserError
from kdcompress.plain_text import one_line, shortened
from kdcompress.schemas.document import VERSION_ERROR

MOST_BYTES = 32 << 20
"""Largest size of a document: figures for each of 400,000 classes, or the duration of every timed call."""
MOST_CONTAINERS = 1 << 20
"""Lists and objects of one document: an empty one takes thirty times the memory of its two characters."""
MOST_DEPTH = 64
"""Nested lists and objects; our own have less than ten."""
_LARGEST = 2**63
# Numbers that may be too large; also such characters within a text, where they do no harm.
_LARGE_NUMBER = re.compile(r"[0-9]{19}|[eE]\+?[0-9]{3}")

Failure = type[KdcompressError]


def read_document(
    path: Path,
    schema: type[BaseModel] | TypeAdapter[Any],
    *,
    advice: str = "",
    failure: Failure = UserError,
    links: bool = True,
) -> Any:
    """Reads a JSON file and checks it against a schema.

    Args:
        path: A regular file.
        schema: A model of `kdcompress.schemas`, or an adapter of another type.
        advice: What to do about a damaged file, put at the end of the message.
        failure: Class of the error.
        links: See `read_bytes`.

    Returns:
        The document as it stands in the file, unknown keys included.

    Raises:
        KdcompressError: `failure`; it cannot be read, is too large, or does not keep its schema.
    """
    text = read_text(path, failure=failure, links=links)
    return parse_document(text, str(path), schema, advice=advice, failure=failure)


def parse_document(
    text: str,
    where: str,
    schema: type[BaseModel] | TypeAdapter[Any],
    *,
    advice: str = "",
    failure: Failure = UserError,
) -> Any:
    """Reads JSON from text and checks it against a schema; raises as `read_document`.

    Args:
        text: The JSON.
        where: Name of its origin, for messages.
        schema: See `read_document`.
        advice: See `read_document`.
        failure: See `read_document`.
    """
    document = parse_json(text, where, advice=advice, failure=failure)
    check_document(document, where, schema, advice=advice, failure=failure)
    return document


def check_document(
    document: Any,
    where: str,
    schema: type[BaseModel] | TypeAdapter[Any],
    *,
    advice: str = "",
    failure: Failure = UserError,
) -> None:
    """Checks a document against a schema; the arguments and errors are those of `parse_document`."""
    adapter = schema if isinstance(schema, TypeAdapter) else _adapter(schema)
    try:
        adapter.validate_python(document, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == VERSION_ERROR:
            raise failure(f"{where}: {_shown(first['msg'])}") from None
        _fail(where, _describe(first), advice, failure)
    except RecursionError:
        _fail(where, "is nested too deeply", advice, failure)


@functools.cache
def _adapter(schema: type[BaseModel]) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def parse_json(text: str, where: str, *, advice: str = "", failure: Failure = UserError) -> Any:
    """Reads bounded JSON: finite numbers, whole characters, `MOST_DEPTH` levels, `MOST_CONTAINERS` in all.

    The arguments and errors are those of `parse_document`.
    """
    if text.count("[") + text.count("{") > MOST_CONTAINERS:
        _fail(where, f"it has more than {MOST_CONTAINERS:,} lists and objects", advice, failure)
    try:
        document = (_CHECKS_NUMBERS if _LARGE_NUMBER.search(text) else _PLAIN).decode(text)
    except json.JSONDecodeError as error:
        _fail(where, f"is not valid JSON ({error.msg}, line {error.lineno})", advice, failure)
    except RecursionError:
        _fail(where, "is nested too deeply", advice, failure)
    except ValueError as error:
        _fail(where, _shown(error), advice, failure)
    if _is_deeper(document, MOST_DEPTH):
        _fail(where, "is nested too deeply", advice, failure)
    if "\\u" in text:  # text of UTF-8 has half a character only where it is written as an escape
        _check_characters(document, where, advice, failure)
    return document


def check_tree(document: Any, where: str, *, advice: str = "", failure: Failure = UserError) -> None:
    """Checks that a document is not nested too deeply and that its text can be written again.

    The arguments and errors are those of `check_document`.
    """
    if _is_deeper(document, MOST_DEPTH):
        _fail(where, "is nested too deeply", advice, failure)
    _check_characters(document, where, advice, failure)


def _check_characters(document: Any, where: str, advice: str, failure: Failure) -> None:
    try:
        json.dumps(document, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        _fail(where, "half a character (a lone surrogate) is in it", advice, failure)


def read_text(path: Path, most: int = MOST_BYTES, *, failure: Failure = UserError, links: bool = True) -> str:
    """Reads a text file; raises as `read_document`.

    Args:
        path: A regular file in UTF-8.
        most: Bytes at most.
        failure: Class of the error.
        links: See `read_bytes`.
    """
    content = read_bytes(path, most, failure=failure, links=links)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise failure(f"{path}: is damaged: byte {error.start} is no UTF-8 text") from None


def read_bytes(
    path: Path, most: int = MOST_BYTES, *, failure: Failure = UserError, links: bool = True
) -> bytes:
    """Reads a regular file, without waiting for what is none; raises as `read_document`.

    Args:
        path: The file.
        most: Bytes at most.
        failure: Class of the error.
        links: False: a link is not followed; for files that this program wrote.
    """
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags) if links else open_in_folder(path, folder=False)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise failure(f"{path}: cannot be read: it is no regular file")
            # A read takes memory for all that it is asked for, so not for `most`.
            content = file.read(min(status.st_size, most) + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise failure(f"{path}: cannot be read: {reason}") from None
    if len(content) > most:
        size = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most:,} bytes"
        raise failure(f"{path}: is larger than {size}, so it is not what kdcompress wrote")
    return content


def _fail(where: str, what: str, advice: str, failure: Failure) -> NoReturn:
    raise failure(f"{where}: is damaged: {what}{f'; {advice}' if advice else ''}")


def _describe(problem: ErrorDetails) -> str:
    """Says in one line what is wrong with which key."""
    *above, last = problem["loc"] or ("",)
    place = ".".join(map(str, above))
    if problem["type"] == "missing":
        return f"{f'{_shown(place)}: ' if place else ''}lacks the key {_shown(repr(last))}"
    what = problem["msg"].removeprefix("Value error, ")
    what = "expected a JSON object" if problem["type"] == "model_type" else what[:1].lower() + what[1:]
    place = ".".join(map(str, problem["loc"]))
    return f"{_shown(place)}: {_shown(what)}" if place else _shown(what)


def _shown(text: object) -> str:
    """Shortens text of the file, which a message quotes."""
    return shortened(one_line(text))


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _int(text: str) -> int:
    if len(text) > 20 or not -_LARGEST <= int(text) < _LARGEST:
        raise ValueError(f"the number {text[:20]} is too large")
    return int(text)


def _is_deeper(document: Any, most: int) -> bool:
    level = [document]
    for _ in range(most + 1):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


_PLAIN = json.JSONDecoder(parse_constant=_refuse)
_CHECKS_NUMBERS = json.JSONDecoder(parse_constant=_refuse, parse_float=_float, parse_int=_int)
