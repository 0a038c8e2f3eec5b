"""Hashes the listing of image files and reports those that cannot be read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from kdcompress.data.file_list import ImageFile, encode_name
from kdcompress.data.folder_tree import DATA_ROOT
from kdcompress.errors import DataError

_SEPARATOR = os.fsencode(os.sep)
_NAMED = 5  # files or folders named in a message


def listing_sha256(files: Iterable[ImageFile]) -> str:
    """Computes a hash of the files' names and sizes, in any order."""
    digest = hashlib.sha256()
    for name, size in sorted([(encode_name(name), size) for name, size, *_ in files]):
        digest.update(b"%s\0%d\0" % (name.replace(_SEPARATOR, b"/"), size))
    return digest.hexdigest()


def broken_sentence(
    root: Path, broken: Mapping[str, str], count: int, share: float, key: str = DATA_ROOT
) -> str:
    """Returns the sentence on broken files, unless there are too many.

    Args:
        root: Their folder.
        broken: Name -> why it cannot be read; at least one.
        count: Number of all image files.
        share: Share of them that may be broken, rounded down, but at least one file unless it is 0.
        key: The recipe's key that names the folder.

    Raises:
        DataError: They are too many, or all.
    """
    allowed = max(1, int(share * count)) if share > 0 else 0
    named = "; ".join(f"{name} ({why})" for name, why in list(broken.items())[:_NAMED])
    more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    sentence = f"{len(broken)} of {count} image files cannot be read: {named}{more}"
    if len(broken) == count:
        raise DataError(f"{key}: {root}: no image can be read; {named}{more}")
    if len(broken) > allowed:
        raise DataError(
            f"{key}: {root}: {sentence}; data.max_broken allows {allowed}. Repair or remove them, or raise it"
        )
    return f"{sentence}; left out"


def quote_names(names: Sequence[str]) -> str:
    """Quotes the first of the names."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more
