"""Names the test split in texts as its folder is named, such as `val`."""

from __future__ import annotations

import re
from typing import Any

TEST = "test"
"""Name of the test split where nobody gave it another one."""
# The nouns that our sentences put behind the name.
_NAMED = re.compile(r"\btest(?=\s+(?:images?|image\s+files|splits?)\b)|(?<=images in )test(?=/)")
_WORD = re.compile(r"\btest")
_MARKED = "t\u034fest"
"""The word where it is the user's. The joiner in it is printable, so that `repr` leaves it as it is, and no
text has it in this place."""


def name_split(text: str, name: str) -> str:
    """Replaces "test" before images, image files and split by the split's name.

    Args:
        text: Sentences of kdcompress, in plain text or a page; what `keep_words` gave stays as it was.
        name: The folder or table value that the test split was read from.
    """
    named = text if name == TEST else _NAMED.sub(lambda _: name, text)
    return named.replace(_MARKED, TEST)


def keep_words(value: Any) -> Any:
    """Marks the word in the user's own texts, such as names of classes, so that `name_split` leaves it.

    Args:
        value: A text, or a tree of lists and dictionaries with texts; other values stay.
    """
    if isinstance(value, str):
        return _WORD.sub(_MARKED, value)
    if isinstance(value, dict):
        return {key: keep_words(entry) for key, entry in value.items()}
    return [keep_words(entry) for entry in value] if isinstance(value, list) else value
