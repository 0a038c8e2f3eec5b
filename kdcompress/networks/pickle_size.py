"""Measures how much work the tuples of a pickle are before it is loaded.

A tuple that holds the same tuple twice, 40 levels deep, takes 300 bytes, and its hash takes 2^40 steps: a
dictionary with such a key never finishes loading, and nothing can interrupt it.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

MOST_STEPS = 100_000_000
"""Elements of all containers that are fetched from the memo, those of tuples in tuples counted anew each
time. A checkpoint of a thousand layers has about a million."""
_PICKLES = 5
"""Pickles of a file of PyTorch before 1.6: magic number, version, system, content, names of storages."""
_TO_MARK = frozenset({"APPENDS", "SETITEMS", "TUPLE"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ADDED = {"APPEND": 1, "SETITEM": 2}

_ARCHIVE = b"PK\x03\x04"
"""Tells torch that a file is a zip."""
_DAMAGE = ValueError, LookupError, OSError, EOFError, OverflowError, struct.error

_Size = list[int]
"""Number of elements in a container, in a list of its own since containers grow."""


def repeats_too_often(path: Path) -> bool:
    """Tells if a checkpoint's pickles fetch more than `MOST_STEPS` elements, so that none may be loaded.

    Args:
        path: A file that `torch.load` may be given.

    Raises:
        Exception: One of `UNPACKING_ERRORS`; its archive is damaged.
    """
    return any(_steps(stream) > MOST_STEPS for stream in _pickles(path))


def _pickles(path: Path) -> list[IO[bytes]]:
    with path.open("rb") as file:
        archived = file.read(4) == _ARCHIVE
    if not archived:
        return [path.open("rb")]
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.lower().endswith("data.pkl")]
        for entry in entries:
            del entry.CRC  # torch does not compare it
        return [io.BytesIO(archive.read(entry)) for entry in entries]


def _steps(stream: IO[bytes]) -> int:
    """Counts the elements that the pickles of a stream fetch; stops after the limit.

    It stops at damage, too: `torch.load` reads the same operations, so it comes no further.
    """
    total = 0
    with stream, suppress(*_DAMAGE):
        for _ in range(_PICKLES):
            for steps in _pickle_steps(stream):
                total += steps
                if total > MOST_STEPS:
                    return total
    return total


def _pickle_steps(stream: IO[bytes]) -> Iterator[int]:
    """Follows the operations of one pickle, and yields the elements of each container that is fetched."""
    stack: list[_Size] = []
    marks: list[int] = []
    memo: dict[int, _Size] = {}
    for operation, argument, _ in pickletools.genops(stream):
        name = operation.name
        if name in {"BINPUT", "LONG_BINPUT"}:
            memo[argument] = stack[-1]  # type: ignore[index]
        elif name in {"BINGET", "LONG_BINGET"}:
            stack.append(memo[argument])  # type: ignore[index]
            yield stack[-1][0]
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _TO_MARK:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            if name == "TUPLE":
                stack.append([1 + sum(size for (size,) in items)])
            else:
                stack[-1][0] += len(items)
        elif name in _TUPLES:
            items = stack[-_TUPLES[name] :]
            del stack[-_TUPLES[name] :]
            stack.append([1 + sum(size for (size,) in items)])
        elif name in _ADDED:
            del stack[-_ADDED[name] :]
            stack[-1][0] += 1
        elif name in {"REDUCE", "NEWOBJ"}:  # such as torch.Size of a tuple
            (arguments,) = stack.pop()
            stack[-1] = [1 + arguments]
        elif name == "BUILD":
            stack.pop()
        elif name == "BINPERSID":
            stack[-1] = [1]
        elif name != "PROTO":
            stack.append([1])  # a value
