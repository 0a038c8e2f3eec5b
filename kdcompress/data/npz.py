"""Checks what the arrays of an .npz file declare before numpy reserves memory for it."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection

import numpy as np

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def check_declared_sizes(
    archive: zipfile.ZipFile, *, arrays: Collection[str] | None = None, most_values: int | None = None
) -> None:
    """Checks that each array has as many bytes as its header declares.

    Args:
        archive: The file.
        arrays: Names of the arrays to check, as far as they are arrays; None: all.
        most_values: Values of an array at most; None: as many as the file holds.

    Raises:
        ValueError: A member is no array, or of another size.
    """
    for entry in archive.infolist():
        if arrays is not None and entry.filename.removesuffix(".npy") not in arrays:
            continue
        with archive.open(entry) as member:
            assert isinstance(member, zipfile.ZipExtFile)
            if arrays is not None and not member.peek(6).startswith(np.lib.format.MAGIC_PREFIX):
                continue  # no array: numpy reads it as bytes, which the caller names
            version = np.lib.format.read_magic(member)
            if version not in _HEADERS:
                raise ValueError(f"{entry.filename}: is of an unknown version of numpy's format, {version}")
            shape, _, kind = _HEADERS[version](member)
            if kind.hasobject:
                continue  # its reader refuses it by its own words
            values = math.prod(shape)
            if most_values is not None and values > most_values:
                raise ValueError(
                    f"{entry.filename}: declares {values:,} values, of which {most_values:,} fit"
                )
            if member.tell() + values * kind.itemsize != entry.file_size:
                raise ValueError(f"{entry.filename}: declares {list(shape)[:8]}, which it does not hold")
