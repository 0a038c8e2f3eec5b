"""Files of fixed-width rows, each with a checksum: any row can be read, written or missing on its own."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdcompress.atomic import translated
from kdcompress.containment import open_in_folder

_CHECKSUM_BYTES = 4

Rows = npt.NDArray[np.uint8]


class RowFiles:
    """Reads and writes rows by the name of a file and the number of a row.

    A row stands at a fixed place of its file with a checksum of the folder's name (the key of what is
    stored), the file's name, its number and its content. A row that was never written, was cut off, was
    damaged, or belongs to another place or folder has no valid checksum and counts as missing, so neither a
    kill nor several processes that write at once need any bookkeeping. Files are read with `pread`, not
    mapped: a mapped file that somebody cuts off ends the process.

    Args:
        folder: Holds the files; made at the first write.
        width: Bytes of a row's content.
    """

    def __init__(self, folder: Path, width: int) -> None:
        assert width > 0, width
        self.folder, self.width = folder, width
        self._step = _CHECKSUM_BYTES + width
        self._open: dict[tuple[str, bool], int] = {}

    def read(
        self, name: str, numbers: npt.NDArray[np.int64], stamps: npt.NDArray[np.int64] | None = None
    ) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """Reads rows of a file.

        Args:
            name: Name of the file; it need not exist.
            numbers: `[B]` row numbers from 0.
            stamps: `[B]` numbers that the rows were written with; others make them count as missing. None or
                0: none.

        Returns:
            The rows' contents `[B, width]`, and `[B]` True where the row is there.
        """
        rows = np.zeros((len(numbers), self.width), np.uint8)
        present = np.zeros(len(numbers), np.bool_)
        descriptor = self._descriptor(name, write=False)
        if descriptor is None:
            return rows, present
        for place, (number, stamp) in enumerate(zip(numbers.tolist(), _listed(stamps, numbers), strict=True)):
            try:
                record = os.pread(descriptor, self._step, number * self._step)
            except OSError:
                continue  # a bad sector: the row is computed again
            content = record[_CHECKSUM_BYTES:]
            if len(record) == self._step and record[:_CHECKSUM_BYTES] == self._sum(
                name, number, content, stamp
            ):
                rows[place] = np.frombuffer(content, np.uint8)
                present[place] = True
        return rows, present

    def write(
        self,
        name: str,
        numbers: npt.NDArray[np.int64],
        rows: Rows,
        stamps: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Writes rows of a file.

        Args:
            name: Name of the file.
            numbers: `[B]` row numbers from 0.
            rows: `[B, width]` contents.
            stamps: As of `read`.

        Raises:
            UserError: The folder must not be written to.
            WorldError: The disk is full or fails.
        """
        assert rows.shape == (len(numbers), self.width), rows.shape
        if len(numbers) == 0:
            return
        with translated(self.folder / name):
            descriptor = self._descriptor(name, write=True)
            assert descriptor is not None
            for number, stamp, row in zip(numbers.tolist(), _listed(stamps, numbers), rows, strict=True):
                content = row.tobytes()
                record = self._sum(name, number, content, stamp) + content
                if os.pwrite(descriptor, record, number * self._step) != len(record):
                    raise OSError(28, "No space left on device")

    def close(self) -> None:
        """Closes the files; a later call opens them again."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _sum(self, name: str, number: int, content: bytes, stamp: int) -> bytes:
        """Returns the CRC-32 of a row, its place and stamp; never 0, that of a place never written."""
        place = f"{self.folder.name}/{name}:{number}" + (f"@{stamp}" if stamp else "")
        crc = zlib.crc32(content, zlib.crc32(place.encode("utf-8", "surrogateescape")))
        return (crc or 1).to_bytes(_CHECKSUM_BYTES, "little")

    def _descriptor(self, name: str, *, write: bool) -> int | None:
        known = self._open.get((name, write))
        if known is not None:
            return known
        flags = (os.O_RDWR | os.O_CREAT) if write else os.O_RDONLY
        try:
            if write:
                self.folder.mkdir(parents=True, exist_ok=True)
            # A link that somebody put there is not followed: rows go to files of the cache alone.
            descriptor = open_in_folder(self.folder / name, flags)
        except OSError:
            if write:
                raise
            return None
        self._open[name, write] = descriptor
        return descriptor


def _listed(stamps: npt.NDArray[np.int64] | None, numbers: npt.NDArray[np.int64]) -> list[int]:
    return [0] * len(numbers) if stamps is None else [int(stamp) for stamp in stamps]


class NoRows(RowFiles):
    """Stands for files that must not be used: every row is missing, and nothing is written."""

    def read(
        self, name: str, numbers: npt.NDArray[np.int64], stamps: npt.NDArray[np.int64] | None = None
    ) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """Finds no row."""
        return np.zeros((len(numbers), self.width), np.uint8), np.zeros(len(numbers), np.bool_)

    def write(
        self,
        name: str,
        numbers: npt.NDArray[np.int64],
        rows: Rows,
        stamps: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Writes nothing."""
