"""Checkpoints: files with all that a resume needs, always whole, with the one before as a fallback."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from kdcompress.archives import UNPACKING_ERRORS, reason_of
from kdcompress.atomic import replacing
from kdcompress.errors import RunFolderError
from kdcompress.networks.pickle_size import repeats_too_often
from kdcompress.networks.read_checkpoint import TORCH_LOAD_ERRORS, oversize
from kdcompress.plain_text import one_line, shortened

SCHEMA = "kdcompress.checkpoint/1"


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint that was read.

    Args:
        state: Its content, on the CPU.
        warning: A sentence for the user if the newest checkpoint was damaged and an older one was read.
    """

    state: dict[str, Any]
    warning: str | None = None


def previous(path: Path) -> Path:
    """Returns the name under which the checkpoint before the newest one is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically and keeps the one before.

    The file is written directly, without a copy of it in memory.

    Args:
        path: The final name.
        state: Tensors, numbers, text and containers of them; nothing that would need code to read.
    """
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            writer = _Writer(file)
            try:
                torch.save({"schema": SCHEMA, **state}, cast(IO[bytes], writer))
            except RuntimeError as error:
                # PyTorch's writer replaces the system's error ("disk full") by one of its own.
                raise writer.error or error from None
        if path.exists():
            _keep_as_previous(path)


def load(path: Path) -> LoadedCheckpoint | None:
    """Reads the newest whole checkpoint, or returns None if there is none.

    Raises:
        RunFolderError: Every one there is damaged, or it was written by a newer version.
    """
    if not path.exists():
        return None
    try:
        return LoadedCheckpoint(_read(path))
    except _DamagedError as damage:
        older = previous(path)
        if not older.exists():
            raise RunFolderError(
                f"{path}: the checkpoint is damaged ({damage}); start again with --overwrite"
            ) from None
        reason = str(damage)
    try:
        state = _read(older)
    except _DamagedError as damage:
        raise RunFolderError(
            f"{path}: the checkpoint is damaged ({reason}), and so is the one before, {older.name} "
            f"({damage}); start again with --overwrite"
        ) from None
    step = state.get("position", {}).get("step", "?")
    return LoadedCheckpoint(
        state, f"{path}: the checkpoint is damaged ({reason}); continuing from the one before, at step {step}"
    )


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Raises an error of the block, which restores a checkpoint's state, as one about its file.

    Args:
        path: Of the checkpoint.

    Raises:
        RunFolderError: The state is not of this training: its file was put there from another one.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = shortened(one_line(f"{type(error).__name__}: {error}"))
        raise RunFolderError(
            f"{path}: the checkpoint is not of this training ({reason}); start again with --overwrite"
        ) from error


_UNREADABLE: tuple[type[Exception], ...] = (
    *TORCH_LOAD_ERRORS, *UNPACKING_ERRORS, pickle.UnpicklingError,
)  # fmt: skip


class _Writer:
    """Passes writes on to a file and keeps the error of a write that failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


class _DamagedError(Exception):
    """A file that is no whole checkpoint."""


def _read(path: Path) -> dict[str, Any]:
    if (size := oversize(path)) is not None:
        raise _DamagedError(f"it would take {size / 1e6:,.0f} MB unpacked")
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch writes checksums and does not read them: a changed weight would go unnoticed.
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"checksum of {damaged}")
        if repeats_too_often(path):
            raise _DamagedError("the same tuples or lists stand in it too many times")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise _DamagedError(reason_of(error)) from None
    schema = state.get("schema") if isinstance(state, dict) else None
    if schema != SCHEMA:
        raise RunFolderError(
            f"{path}: a checkpoint of schema {schema!r}, this version reads {SCHEMA!r}; go on with the "
            "version of kdcompress that wrote it, or start again with --overwrite"
        )
    return dict(state)


def _keep_as_previous(path: Path) -> None:
    """Gives the checkpoint its second name; on file systems without hard links, copies it."""
    older = previous(path)
    if older.exists() and older.samefile(path):
        return  # a process was killed between the two renames
    # Its content is on the disk already: a second name needs no copy and no sync.
    name = path.with_name(f".{older.name}.{os.getpid()}.tmp")
    try:
        os.link(path, name)
    except OSError:
        with replacing(older) as copy:
            shutil.copyfile(path, copy)
        return
    try:
        os.replace(name, older)
    finally:
        name.unlink(missing_ok=True)
