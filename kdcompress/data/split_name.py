"""Names the test split in texts as its folder is named, such as `val`."""

from __future__ import annotations

import re

TEST = "test"
"""Name of the test split where nobody gave it another one."""
# The nouns that our sentences put behind the name; a path of the user's is none of them.
_NAMED = re.compile(r"\btest(?=\s+(?:images?|image\s+files|splits?)\b)|(?<=images in )test(?=/)")


def name_split(text: str, name: str) -> str:
    """Replaces "test" before images, image files and split by the split's name.

    Args:
        text: Sentences of kdcompress, in plain text or a page.
        name: The folder or table value that the test split was read from.
    """
    return text if name == TEST else _NAMED.sub(lambda _: name, text)
