"""Remembers which image files of a folder were decoded to their end: the manifest of a checked folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from kdcompress.atomic import write_bytes
from kdcompress.data.cache import cache_folder
from kdcompress.data.file_list import HASH_BYTES, ImageFile, hash_of_file
from kdcompress.documents import read_bytes
from kdcompress.errors import KdcompressError, UserError

_MAGIC = b"kdcompress.sound/1\n"
_SUM_BYTES = 32
_MOST_BYTES = 1 << 29
"""33 million files; a longer list counts as damaged, and is made anew."""


class SoundFiles:
    """Hashes of the files of a folder that are known to be sound, kept in the cache folder.

    A file whose name, size or time of the last write is another one has another hash, so it counts as
    unknown; files that were removed stay in the list and match nothing. A list that is damaged counts as
    empty, and one that cannot be written costs the next run its check.

    Attributes:
        path: File of the hashes.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        place = os.fsencode(root.resolve())
        self.path = cache_folder() / "checks" / f"{hashlib.sha256(place).hexdigest()}.sound"
        self._rows = self._read()

    def without_known(self, files: Sequence[ImageFile]) -> list[ImageFile]:
        """Returns the files that are not known to be sound."""
        return [file for file in files if hash_of_file(file) not in self._rows] if self._rows else list(files)

    def add(self, files: Iterable[ImageFile]) -> None:
        """Saves files as sound."""
        self._rows.update(map(hash_of_file, files))
        content = b"".join(self._rows)
        with suppress(OSError, KdcompressError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.path, _MAGIC + hashlib.sha256(content).digest() + content)

    def _read(self) -> set[bytes]:
        try:
            stored = read_bytes(self.path, _MOST_BYTES, links=False)
        except UserError:
            return set()
        start = len(_MAGIC) + _SUM_BYTES
        content = memoryview(stored)[start:]
        if stored[:start] != _MAGIC + hashlib.sha256(content).digest():
            return set()
        return {bytes(content[at : at + HASH_BYTES]) for at in range(0, len(content), HASH_BYTES)}
