"""Makes text of unknown origin safe to print: no character of it can move the cursor or split a line."""

from __future__ import annotations

import unicodedata
from typing import Any

_SEPARATORS = {"\u2028", "\u2029"}
_DIRECTIONS = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}
"""Characters that show the text after them in another order than it has."""


def printable(text: object, keep: str = "") -> str:
    """Returns the text with control characters, line separators and lone surrogates as escapes.

    Args:
        text: Anything; its `str` is taken.
        keep: Control characters that stay, such as a line break.
    """
    written = str(text)
    if written.isprintable():
        return written
    return "".join(_escape(c) if _is_control(c) and c not in keep else c for c in written)


def printable_value(value: object) -> object:
    """Returns text that a page shows as `printable` gives it; any other value as it is."""
    return type(value)(printable(value, keep="\n\t")) if isinstance(value, str) else value


def printable_tree(value: Any) -> Any:
    """Returns a document whose texts are `printable`, names of keys included; line breaks stay."""
    if isinstance(value, str):
        return printable(value, keep="\n")
    if isinstance(value, dict):
        return {printable_tree(key): printable_tree(entry) for key, entry in value.items()}
    return [printable_tree(entry) for entry in value] if isinstance(value, list | tuple) else value


def one_line(text: object) -> str:
    """Returns the text on one line: breaks and tabs become spaces, other controls escapes."""
    return printable("".join(" " if c in "\t\n\r\v\f\x85\u2028\u2029" else c for c in str(text)))


def shortened(text: object, most: int = 160) -> str:
    """Returns the text, without its middle if it is longer than so many characters."""
    written = str(text)
    return written if len(written) <= most else f"{written[: most // 2]}…{written[-(most // 2) :]}"


def _is_control(character: str) -> bool:
    if character in _SEPARATORS or character in _DIRECTIONS:
        return True
    return unicodedata.category(character) in {"Cc", "Cs"}


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
