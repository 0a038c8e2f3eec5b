"""Files of the pixel cache: immutable segments of up to 256 pictures, each with a checked index at its end.

    magic, key | pictures, one after the other | index | number of pictures, SHA-256 of magic, key and index

A row of the index names a picture by a hash of its file's name, size and time, so a segment serves any
subset of the set, and a file that was replaced is found in no segment. A segment is written under a temporary
name and renamed, so a killed run leaves whole segments; one that is truncated or whose index is damaged is
removed. Each picture has a checksum over its bytes, its name and the key, verified when a process reads it
for the first time.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcompress.atomic import replacing, translated
from kdcompress.containment import open_in_folder
from kdcompress.data.file_list import ImageFile, hash_of_file
from kdcompress.data.raw import OnProgress
from kdcompress.data.threads import map_in_threads
from kdcompress.errors import UserError

SEGMENT = 256
"""Pictures of a segment: after a kill each thread makes as many again."""
_MAGIC = b"kdcompress.pixels/1\n"
_SUFFIX = ".pixels"
_NUMBERS = [("offset", "<u8"), ("length", "<u4"), ("width", "<u4"), ("height", "<u4"), ("sum", "<u4")]
_INDEX = np.dtype([("name", "S16"), *_NUMBERS])
_COUNT_BYTES, _SUM_BYTES = 8, 32
_FOOTER = _COUNT_BYTES + _SUM_BYTES
_LEFTOVER_SECONDS = 86_400.0
_MOST_PICTURES = 1 << 16
_MOST_PICTURE_BYTES = 1 << 28
"""A segment with more, or a larger picture, was not written here."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is stored.

    Args:
        content: Raw pixels `[H, W, C]`, or a JPEG file.
        width: Pixels.
        height: Pixels.
    """

    content: bytes
    width: int
    height: int


MakePicture = Callable[[ImageFile], Picture]


@dataclass(frozen=True, eq=False)
class PixelStore:
    """Places of N pictures in the segments of a folder. Worker processes receive it in shared memory.

    Args:
        folder: Of the segments.
        key: 32 bytes, a hash of what determines the pixels beside the file's name, size and time.
        segments: Names of the segments.
        places: `[N, 6]` int64: number of the segment, offset, length, width, height, checksum. The number is
            -1 where a picture is in no segment.
        verified: `[N]` uint8, 1 where a process has verified the checksum.
    """

    folder: Path
    key: bytes
    segments: tuple[str, ...]
    places: Tensor
    verified: Tensor

    @classmethod
    def opened(cls, folder: Path, key: bytes, files: Sequence[ImageFile]) -> Self:
        """Finds files in the segments of a folder; removes damaged segments.

        Args:
            folder: Of the segments; need not exist.
            key: 32 bytes.
            files: N files of the data set.
        """
        segments, hashes, rows = list[str](), list[NDArray[Any]](), list[NDArray[Any]]()
        for path in () if folder.is_symlink() else sorted(folder.glob(f"*{_SUFFIX}")):
            index = _read_index(path, key)
            if index is None:
                _remove(path)
                continue
            columns = [np.full(len(index), len(segments)), *(index[name] for name, _ in _NUMBERS)]
            rows.append(np.stack([column.astype(np.int64) for column in columns], 1))
            hashes.append(index["name"])
            segments.append(path.name)
        wanted = np.array([hash_of_file(file) for file in files], "S16")
        places = np.full((len(files), 1 + len(_NUMBERS)), -1, np.int64)
        if hashes:
            stored = np.concatenate(hashes)
            order = np.argsort(stored, kind="stable")
            at = order[np.searchsorted(stored, wanted, sorter=order).clip(max=len(stored) - 1)]
            matches = stored[at] == wanted
            places[matches] = np.concatenate(rows)[at[matches]]
        verified = torch.zeros(len(files), dtype=torch.uint8)
        return cls(folder, key, tuple(segments), torch.from_numpy(places), verified)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def missing(self) -> list[int]:
        """Positions of the pictures that are in no segment."""
        return (self.places[:, 0] < 0).nonzero().flatten().tolist()

    @property
    def nbytes(self) -> int:
        """Bytes of the pictures that are in segments."""
        return int(self.places[:, 2].clamp(min=0).sum())

    def subset(self, indices: Tensor) -> Self:
        """Selects the pictures at these positions, renumbered from 0."""
        return replace(self, places=self.places[indices], verified=self.verified[indices])

    def read(
        self, index: int, file: Callable[[], ImageFile], fits: Callable[[Picture], bool]
    ) -> Picture | None:
        """Reads a picture; None if it is in no segment, or is damaged: its segment is then removed.

        Args:
            index: Position.
            file: Returns the file that the picture was made from.
            fits: Tells if a picture has the form of the cache; asked once for each.
        """
        segment, offset, length, width, height, checksum = self.places[index].tolist()
        if segment < 0:
            return None
        path = self.folder / self.segments[segment]
        try:
            # A link is not followed and a pipe not waited for; `opened` has looked at the folder.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                content = os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
        except OSError:
            return None
        picture = Picture(content, width, height)
        if not self.verified[index]:
            if _checksum(content, self.key, hash_of_file(file())) != checksum or not fits(picture):
                _remove(path)  # the next run makes its pictures again
                return None
            self.verified[index] = 1
        return picture if len(content) == length else None


def fill_segments(
    folder: Path, key: bytes, chunks: Sequence[Sequence[ImageFile]], make: MakePicture, progress: OnProgress
) -> None:
    """Makes segments, in as many threads as there are cores.

    Args:
        folder: Of the segments; made if it does not exist.
        key: 32 bytes.
        chunks: Files of each segment.
        make: Makes a picture; called in the threads.
        progress: Called with the number of finished pictures.

    Raises:
        KdcompressError: The folder cannot be written to, or `make` says that a file cannot be read.
    """
    if folder.is_symlink():
        raise UserError(f"{folder}: is a link, so nothing is written there; remove it")
    with translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    total = sum(map(len, chunks))
    finished = [0]

    def tell(what: str, done: int, _: int) -> None:
        finished[0] = total if done == len(chunks) else done * len(chunks[0])
        progress(what, finished[0], total)

    map_in_threads(lambda files: _write_segment(folder, key, files, make), chunks, "fill pixel cache", tell)


def _write_segment(folder: Path, key: bytes, files: Sequence[ImageFile], make: MakePicture) -> None:
    hashes = [hash_of_file(file) for file in files]
    name = hashlib.sha256(b"".join(hashes)).hexdigest()[:32]
    with replacing(folder / f"{name}{_SUFFIX}") as temporary, temporary.open("wb") as stored:
        _write_pictures(stored, key, zip(hashes, map(make, files), strict=True))


def _write_pictures(stored: BinaryIO, key: bytes, pictures: Any) -> None:
    offset = stored.write(_MAGIC + key)
    rows = []
    for row_hash, picture in pictures:
        length = len(picture.content)
        checksum = _checksum(picture.content, key, row_hash)
        rows.append((row_hash, offset, length, picture.width, picture.height, checksum))
        offset += stored.write(picture.content)
    index = np.array(rows, _INDEX).tobytes()
    stored.write(index + len(rows).to_bytes(_COUNT_BYTES, "little") + _index_sum(key, index))


def _read_index(path: Path, key: bytes) -> NDArray[Any] | None:
    """Reads the index of a segment; None if it is foreign, truncated or damaged."""
    try:
        with open(open_in_folder(path), "rb") as stored:
            size = os.fstat(stored.fileno()).st_size
            if stored.read(len(_MAGIC) + len(key)) != _MAGIC + key or size < _FOOTER:
                return None
            stored.seek(size - _FOOTER)
            count = int.from_bytes(stored.read(_COUNT_BYTES), "little")
            index_sum = stored.read(_SUM_BYTES)
            start = size - _FOOTER - count * _INDEX.itemsize
            if start < len(_MAGIC) + len(key) or count > _MOST_PICTURES:
                return None
            stored.seek(start)
            content = stored.read(count * _INDEX.itemsize)
    except OSError:
        return None
    if index_sum != _index_sum(key, content):
        return None
    index = np.frombuffer(content, _INDEX)
    # The sum of the index is right; these numbers are wrong only in a segment that another program wrote.
    offsets, lengths = index["offset"], index["length"]
    if (offsets > start).any() or (lengths > _MOST_PICTURE_BYTES).any():
        return None
    ends = offsets + lengths
    return index if bool((ends <= start).all()) and (count == 0 or ends[-1] == start) else None


def _index_sum(key: bytes, index: bytes) -> bytes:
    return hashlib.sha256(_MAGIC + key + index).digest()


def _checksum(content: bytes, key: bytes, row_hash: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(key + row_hash))


def _remove(path: Path) -> None:
    """Removes what stands in the place of a segment; a folder of that name too, if it is empty."""
    with suppress(OSError):
        path.unlink()
    with suppress(OSError):
        path.rmdir()


def _remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of killed processes; younger ones may be of a process that is at work."""
    for path in folder.glob(f".*{_SUFFIX}.*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()
