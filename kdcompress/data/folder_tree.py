"""Lists the folders and images below a folder, each folder and each file looked at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kdcompress.data.decode import SUFFIXES
from kdcompress.data.file_list import ImageFile
from kdcompress.errors import DataError

DATA_ROOT = "data.root"
"""The recipe's key of the folder, which begins every message on it."""
_DEEPEST = 100
"""Folders in one another."""


def is_image(name: str) -> bool:
    """Tells an image file by its name."""
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() in SUFFIXES and not stem.endswith("/") and stem != ""


@dataclass(frozen=True, slots=True)
class _Folder:
    """The content of a folder, without hidden names.

    Args:
        folders: Names, sorted.
        images: Its image files, sorted; names relative to the root.
        problems: Why images cannot be looked at.
    """

    folders: list[str]
    images: list[ImageFile]
    problems: list[str]


class FolderTree:
    """Folders and images below a root, without hidden ones.

    A folder is read when it is asked for, and then kept: one `scandir` per folder and one `stat` per image
    give all that the program wants to know of a file before it decodes it. They are done in every run, since
    nothing cheaper tells that a file was replaced or written over; a file system does not change a folder's
    time when a file in it is written.

    Args:
        root: The folder.
        key: The recipe's key that names it.
    """

    def __init__(self, root: Path, key: str = DATA_ROOT) -> None:
        self.root, self._key = root, key
        self._read: dict[str, _Folder] = {}

    def folders(self, folder: str = "") -> list[str]:
        """Returns the sorted names of the folders in a folder.

        Args:
            folder: Relative to the root.

        Raises:
            DataError: It cannot be listed.
        """
        return self._content(folder).folders

    def has_images(self, folder: str = "") -> bool:
        """Tells if there are images in a folder itself; arguments as of `folders`."""
        content = self._content(folder)
        return bool(content.images or content.problems)

    def images(self, folder: str = "") -> list[ImageFile]:
        """Returns the images at any depth below a folder, sorted by their names relative to the root.

        Links are followed, but not in circles. Arguments as of `folders`.

        Raises:
            DataError: A folder cannot be listed, or lies deeper than anybody sorts images; or an image
                cannot be looked at.
        """
        files: list[ImageFile] = []
        self._collect(folder, frozenset(), files)
        return sorted(files)

    def _collect(self, folder: str, above: frozenset[tuple[int, int]], files: list[ImageFile]) -> None:
        if len(above) > _DEEPEST:
            raise DataError(
                f"{self._key}: {self.root}: has folders in folders, more than {_DEEPEST} deep; move them up"
            )
        try:
            status = os.stat(self.root / folder)
        except OSError as error:
            raise self._unlistable(folder, error) from None
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        content = self._content(folder)
        if content.problems:
            raise DataError(content.problems[0])
        files += content.images
        for name in content.folders:
            self._collect(os.path.join(folder, name), above | {here}, files)

    def _content(self, folder: str) -> _Folder:
        if folder not in self._read:
            self._read[folder] = self._scanned(folder)
        return self._read[folder]

    def _scanned(self, folder: str) -> _Folder:
        folders, images, problems = list[str](), list[ImageFile](), list[str]()
        before = os.path.join(folder, "")
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        folders.append(entry.name)
                    elif is_image(entry.name):
                        name = before + entry.name
                        try:
                            status = entry.stat()
                        except OSError as error:
                            problems.append(f"{self.root / name}: {error.strerror}")
                        else:
                            images.append(ImageFile(name, status.st_size, status.st_mtime_ns))
        except OSError as error:
            raise self._unlistable(folder, error) from None
        return _Folder(sorted(folders), sorted(images), sorted(problems))

    def _unlistable(self, folder: str, error: OSError) -> DataError:
        return DataError(f"{self._key}: {self.root / folder}: cannot be listed: {error.strerror}")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # if it is named like an image, looking at it says why
