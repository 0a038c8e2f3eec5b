"""Names the errors that damaged archives raise, and unpacks gzip files up to a bound."""

from __future__ import annotations

import gzip
import lzma
import struct
import tarfile
import tokenize
import zipfile
import zlib
from typing import BinaryIO

UNPACKING_ERRORS: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, LookupError, RuntimeError, TypeError, OverflowError,
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error,
    # numpy reads the head of an array as a Python expression.
    SyntaxError, tokenize.TokenError,
)  # fmt: skip
"""Raised by the readers of archives and of numpy's arrays on damaged bytes."""


def unzipped(file: BinaryIO, most: int) -> bytes:
    """Unpacks a gzip file.

    Args:
        file: Opened for reading.
        most: Bytes at most.

    Raises:
        ValueError: It unpacks to more.
        OSError, EOFError, zlib.error: It is damaged.
    """
    with gzip.GzipFile(fileobj=file) as packed:
        content = packed.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it unpacks to more than {most >> 20} MiB")
    return content


def reason_of(error: BaseException) -> str:
    """Returns what an error says, in one line; its name if it says nothing."""
    return getattr(error, "strerror", None) or str(error).split("\n", 1)[0] or type(error).__name__
