"""Stores the names of many files in one block of memory, with their sizes and times."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self, overload

import torch
from torch import Tensor

from kdcompress.data.shard_member import SUFFIX, ShardMember
from kdcompress.errors import DataError

HASH_BYTES = 16
"""Bytes of `hash_of_file`; two of a million files share a hash with a chance of 1e-27."""
_ENCODING = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
_FEW = 64  # names that are cut out of the block one by one; for more it is copied
_UNKNOWN = -1  # size of a file that nobody has looked at


class ImageFile(NamedTuple):
    """A file as the folder lists it, or an image in a tar shard.

    Args:
        name: Relative to the data set's root; of an image in a shard `SHARD/MEMBER`.
        size: Bytes.
        mtime_ns: Time of the last write, in ns since the epoch; of an image in a shard the shard's.
        offset: Its first byte in its shard; -1: it is a file of its own.
    """

    name: str
    size: int
    mtime_ns: int
    offset: int = -1


def image_file(root: Path, name: str) -> ImageFile:
    """Returns the listing's entry of a file.

    Raises:
        DataError: It cannot be looked at.
    """
    try:
        status = os.stat(os.path.join(root, name))
    except OSError as error:
        raise DataError(f"{root / name}: {error.strerror}") from None
    return ImageFile(name, status.st_size, status.st_mtime_ns)


def place_of(root: Path, file: ImageFile) -> Path | ShardMember:
    """Returns where a file's bytes are read from.

    Args:
        root: Folder that its name is relative to.
        file: As it was listed.
    """
    if file.offset < 0:
        return root / file.name
    shard, member = _shard_and_member(file.name)
    return ShardMember(root / shard, member, file.offset, file.size, file.mtime_ns)


def is_unchanged(root: Path, file: ImageFile) -> bool:
    """Tells if a file, or the shard it is in, has the size and time that it was listed with.

    Raises:
        DataError: It cannot be looked at.
    """
    if file.offset < 0:
        return image_file(root, file.name) == file
    return image_file(root, _shard_and_member(file.name)[0]).mtime_ns == file.mtime_ns


def _shard_and_member(name: str) -> tuple[str, str]:
    # No folder between the root and a shard has a name like a shard's, so the first one is it.
    end = name.lower().index(f"{SUFFIX}/") + len(SUFFIX)
    return name[:end], name[end + 1 :]


def encode_name(name: str) -> bytes:
    """Encodes a file's name as `os.fsencode` does, in half the time: a start does it for every file."""
    return name.encode(*_ENCODING)


def hash_of_file(file: ImageFile) -> bytes:
    """Computes a hash of a file's name, size and time, which another content of the file does not share."""
    text = b"%s\0%d\0%d" % (encode_name(file.name), file.size, file.mtime_ns)
    return hashlib.blake2b(text, digest_size=HASH_BYTES).digest()


class FileList(Sequence[str]):
    """Names of files, by position. A million of them take one block of bytes and five columns of numbers.

    All are tensors: worker processes receive them in shared memory, so that there is one copy for all, and a
    subset takes the block of the whole.

    Args:
        block: `[bytes]` uint8, all names one after the other.
        columns: `[N, 5]` int64: start and length of each name in the block, the file's size in bytes (-1: not
            known), its time of the last write in ns, and its offset in a shard (-1: it is in none).
    """

    def __init__(self, block: Tensor, columns: Tensor) -> None:
        self._block, self._columns = block, columns

    @classmethod
    def of_names(cls, names: Iterable[str]) -> Self:
        """Lists files that nobody has looked at yet."""
        return cls.of_files(ImageFile(name, _UNKNOWN, 0) for name in names)

    @classmethod
    def of_files(cls, files: Iterable[ImageFile]) -> Self:
        """Lists files of which size and time are known."""
        files = list(files)
        names = [encode_name(file.name) for file in files]
        lengths = torch.tensor([len(name) for name in names], dtype=torch.int64)
        columns = torch.stack(
            [
                lengths.cumsum(0) - lengths,
                lengths,
                torch.tensor([file.size for file in files], dtype=torch.int64),
                torch.tensor([file.mtime_ns for file in files], dtype=torch.int64),
                torch.tensor([file.offset for file in files], dtype=torch.int64),
            ],
            1,
        )
        block = bytearray(b"".join(names))
        return cls(torch.frombuffer(block, dtype=torch.uint8) if block else torch.empty(0).byte(), columns)

    def __len__(self) -> int:
        return len(self._columns)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return type(self)(self._block, self._columns[index])
        start, length = self._columns[index, :2].tolist()
        return os.fsdecode(self._block[start : start + length].numpy().tobytes())

    def __iter__(self) -> Iterator[str]:
        if len(self) < _FEW:
            yield from (self[index] for index in range(len(self)))
            return
        block = self._block.numpy().tobytes()
        for start, length in self._columns[:, :2].tolist():
            yield block[start : start + length].decode(*_ENCODING)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    @property
    def times(self) -> Tensor:
        """`[N]` int64, each file's time of the last write in ns; 0: not known."""
        return self._columns[:, 3]

    def place(self, root: Path, index: int) -> Path | ShardMember:
        """Returns where a file's bytes are read from, without looking at it; see `image_files`."""
        size, mtime_ns, offset = self._columns[index, 2:].tolist()
        return place_of(root, ImageFile(self[index], size, mtime_ns, offset))

    def file(self, root: Path, index: int) -> ImageFile:
        """Returns one file with its size and time; arguments as of `image_files`."""
        return self.subset(torch.tensor([index])).image_files(root)[0]

    def subset(self, indices: Tensor) -> Self:
        """Selects the files at these positions, renumbered from 0."""
        return type(self)(self._block, self._columns[indices])

    def image_files(self, root: Path) -> list[ImageFile]:
        """Returns names, sizes and times; looks at the files of which they are not known.

        Args:
            root: Folder that the names are relative to.

        Raises:
            DataError: A file cannot be looked at.
        """
        return [
            image_file(root, name) if size == _UNKNOWN else ImageFile(name, size, mtime_ns, offset)
            for name, (size, mtime_ns, offset) in zip(self, self._columns[:, 2:].tolist(), strict=True)
        ]
