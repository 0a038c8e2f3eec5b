"""Lists the image files of a folder and reports those that cannot be read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from kdcompress.data.decode import SUFFIXES
from kdcompress.data.image_check import ImageFile
from kdcompress.errors import DataError

DATA_ROOT = "data.root"
"""The recipe's key of the folder, which begins every message on it."""
_DEEPEST = 100
"""Folders in one another."""
_NAMED = 5  # files or folders named in a message


def visible(folder: Path, key: str = DATA_ROOT) -> list[str]:
    """Names of what lies in the folder, sorted, without hidden ones.

    Args:
        folder: To list.
        key: The recipe's key that names it.

    Raises:
        DataError: It cannot be listed.
    """
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"{key}: {folder}: cannot be listed: {error.strerror}") from None


def folders(folder: Path, key: str = DATA_ROOT) -> list[str]:
    """Names of the folders in it, as `visible`."""
    return [name for name in visible(folder, key) if (folder / name).is_dir()]


def images(
    root: Path, folder: Path, key: str = DATA_ROOT, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
    """Names of the images below a folder, relative to the root. Links are followed, but not in circles.

    Raises:
        DataError: A folder cannot be listed, or lies deeper than anybody sorts images.
    """
    if len(above) > _DEEPEST:
        raise DataError(f"{key}: {root}: has folders in folders, more than {_DEEPEST} deep; move them up")
    try:
        status = (root / folder).stat()
    except OSError as error:
        raise DataError(f"{key}: {root / folder}: cannot be listed: {error.strerror}") from None
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for name in visible(root / folder, key):
        if (root / folder / name).is_dir():
            yield from images(root, folder / name, key, above | {here})
        elif is_image(name):
            yield str(folder / name)


def is_image(name: str) -> bool:
    """Tells an image file by its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def listing_sha256(files: Iterable[ImageFile]) -> str:
    """Computes a hash of the files' names and sizes, in any order."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: os.fsencode(file.name)):
        digest.update(b"%s\0%d\0" % (os.fsencode(Path(file.name).as_posix()), file.size))
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
