"""Gives libraries that take only UTF-8 paths another path of a file whose name is other bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Yields a path in UTF-8 by which the file can be opened meanwhile: its own, or that of a descriptor.

    Args:
        path: Of a file to read; safetensors calls one that is no UTF-8 damaged.

    Raises:
        OSError: The file cannot be opened.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        with path.open("rb") as file:
            yield Path(f"/dev/fd/{file.fileno()}")
    else:
        yield path
