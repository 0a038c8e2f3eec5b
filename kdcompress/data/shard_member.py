"""Opens one member of a tar shard like a file, by its offset."""

from __future__ import annotations

import errno
import io
import os
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

SUFFIX = ".tar"
"""End of a shard's name, in any case."""
_MOST_BUFFERED = 1 << 22  # a usual image comes with one read; a member may lie and be larger than the memory


@dataclass(frozen=True, slots=True)
class ShardMember:
    """A place to read an image from: a part of a shard.

    Args:
        shard: The tar file.
        name: Name of the member; it is only a name, and no path of the disk.
        offset: Its first byte in the shard.
        size: Its number of bytes.
        mtime_ns: Time of the shard's last write when it was indexed.
    """

    shard: Path
    name: str
    offset: int
    size: int
    mtime_ns: int

    def __str__(self) -> str:
        return f"{self.shard}: {self.name}"

    def open(self) -> BufferedReader:
        """Opens the member for reading.

        Raises:
            OSError: The shard cannot be opened, or was written after it was indexed.
        """
        descriptor = os.open(self.shard, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_mtime_ns != self.mtime_ns:
            os.close(descriptor)
            raise OSError(errno.ESTALE, "the shard was changed after the run had listed it", str(self.shard))
        return BufferedReader(
            _Window(descriptor, self.offset, self.size), max(1, min(self.size, _MOST_BUFFERED))
        )


class _Window(io.RawIOBase):
    """Bytes `start` to `start + size` of an open file, which it closes."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor, self._start, self._size, self._at = descriptor, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if begin + offset < 0:
            raise ValueError(f"negative position {begin + offset}")
        self._at = begin + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        wanted = max(0, min(len(view), self._size - self._at))
        content = os.pread(self._descriptor, wanted, self._start + self._at)
        view[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
