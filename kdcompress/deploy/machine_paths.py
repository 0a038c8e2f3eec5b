"""Finds absolute paths, of this machine or another, which must not be in a file that ships."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

_ABSOLUTE = re.compile(r"""(?:^|[\s"'(=:\[,])(?:/[^/\s"']+){2,}|(?:^|[\s"'(=\[,])[A-Za-z]:\\|file://""")
"""A path from the root (two names deep, so that "/s" or "and/or" is none), a drive letter, a file address."""
_SHORTEST = 5
"""Characters of a folder's name below which finding it by chance is likely: `/`, `/tmp`."""


def folders_in(content: bytes) -> Iterator[str]:
    """Yields the folders of this machine that are named somewhere in a file's content."""
    for folder in _folders():
        # Whole names only: "/work" is not in "some/workshop".
        if re.search(rb"(?<![\w.-])" + re.escape(folder.encode()) + rb"(?![\w.-])", content):
            yield folder


def is_path(text: str) -> bool:
    """Returns whether a text of a file has something like an absolute path in it."""
    return _ABSOLUTE.search(text) is not None


def _folders() -> list[str]:
    package = Path(__file__).resolve().parents[2]
    places = [Path.home(), Path.cwd(), Path(sys.prefix), Path(torch.__file__).parent, package]
    places.append(Path(tempfile.gettempdir()))
    return sorted({str(place) for place in places if len(str(place)) >= _SHORTEST})
