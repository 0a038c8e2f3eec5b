"""Finds the tar shards that a place of data means: a folder, one file, or a pattern of names."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from kdcompress.data.folder_tree import DATA_ROOT, is_image
from kdcompress.data.image_files import quote_names
from kdcompress.data.image_splits import VAL
from kdcompress.data.shard_member import SUFFIX
from kdcompress.errors import DataError
from kdcompress.user_paths import expand_home

SPLITS = ("train", *VAL, "test")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_NAMES = 1_000_000
_PATTERN_CHARACTERS = frozenset("*?[{")


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of a data set.

    Args:
        name: Relative to the data set's root.
        split: Name of the split that its folder or its own name says, or empty.
    """

    name: str
    split: str


def shards_at(root: str | None) -> tuple[Path, list[Shard]] | None:
    """Returns the root and the sorted shards of a place of data, or None if it is something else.

    Args:
        root: A folder of `.tar` files and no folders or images; a folder with `train/` (and `val/`, `test/`)
            of them; a `.tar` file; or a pattern of file names with `*`, `?`, `[...]` and `{0000..0009}`.

    Raises:
        DataError: Some splits are shards and others are not, or the pattern fits no shard.
    """
    if root is None:
        return None
    path = expand_home(root, "data.root")
    if path.is_dir():
        return _in_folder(path)
    if path.is_file():
        return (path.parent, [_named(path.name)]) if path.suffix.lower() == SUFFIX else None
    return (path.parent, _fitting(path)) if is_pattern(path) else None


def is_pattern(path: Path) -> bool:
    """Tells a pattern of shards' names, such as `train-{0000..0099}.tar`, from a path."""
    return bool(_PATTERN_CHARACTERS.intersection(path.name)) and path.suffix.lower() == SUFFIX


def _in_folder(root: Path) -> tuple[Path, list[Shard]] | None:
    splits = {name: _tar_files(root / name) for name in SPLITS if (root / name).is_dir()}
    if any(splits.values()):
        if without := [name for name, files in splits.items() if not files]:
            packed = [name for name, files in splits.items() if files]
            raise DataError(
                f"{DATA_ROOT}: {root}: {quote_names(packed)} holds tar shards and {quote_names(without)} "
                "does not hold shards alone; pack all splits or none"
            )
        shards = [Shard(os.path.join(name, file), name) for name in splits for file in splits[name]]
        return root, shards
    files = _tar_files(root)
    return (root, [_named(file) for file in files]) if files else None


def _tar_files(folder: Path) -> list[str]:
    """Lists the tar files of a folder; none if it holds images or folders, which then are the data."""
    files = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() or is_image(entry.name):
                    return []
                if entry.name.lower().endswith(SUFFIX) and entry.is_file():
                    files.append(entry.name)
    except OSError:
        return []  # whoever lists it as an image folder says why
    return sorted(files)


def _fitting(pattern: Path) -> list[Shard]:
    """Lists the files that a pattern names; each name of a range of numbers must be there."""
    names = [pattern.name]
    while match := _RANGE.search(names[0]):
        first, last = (int(number) for number in match.groups())
        width = len(match[1])
        if last < first or (last - first + 1) * len(names) > _MOST_NAMES:
            raise DataError(f"{DATA_ROOT}: {pattern}: {match[0]} is no range of shards; write {{0000..0009}}")
        names = [
            f"{name[: found.start()]}{number:0{width}}{name[found.end() :]}"
            for name in names
            if (found := _RANGE.search(name))
            for number in range(first, last + 1)
        ]
    files: list[str] = []
    missing = []
    for name in names:
        fitting = [file for file in glob.glob(name, root_dir=pattern.parent) if file.lower().endswith(SUFFIX)]
        files += fitting
        if not fitting:
            missing.append(name)
    if missing:
        raise DataError(f"{DATA_ROOT}: {pattern.parent}: no such shard: {quote_names(missing)}")
    return [_named(file) for file in sorted(set(files))]


def _named(file: str) -> Shard:
    """Returns a shard with the split that a word of its name says, as in `imagenet-train-0001.tar`."""
    words = re.split(r"[^a-z]+", file.lower())
    splits = {word for word in words if word in SPLITS}
    return Shard(file, splits.pop() if len(splits) == 1 else "")
