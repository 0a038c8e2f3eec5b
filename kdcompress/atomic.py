"""Files that are either whole or absent: written under a temporary name, fsynced, renamed.

A run may be killed at any instant: a later reader gets the old file or the new one, never a part of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kdcompress.errors import KdcompressError, UserError, WorldError

_READ_BYTES = 1 << 20


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically.

    Raises:
        UserError: The folder does not exist or must not be written to.
        WorldError: The disk is full or fails; `path` is as it was.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Writes `content` to `path` as UTF-8, atomically; raises as `write_bytes`."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, document: Any) -> None:
    """Writes `document` to `path` as indented JSON, atomically; raises as `write_bytes`.

    NaN and infinities are refused (ValueError): they are no JSON, and most readers stop at them.
    """
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path, renamed to `path` when the block ends and deleted if it raises.

    For libraries that write files themselves; the block must close what it opens.

    Args:
        path: The final name; its folder must exist.

    Raises:
        UserError: The folder does not exist or must not be written to.
        WorldError: The disk is full or fails; `path` is as it was.
    """
    path = Path(path)
    # Hidden and unique: two processes that write the same file must not write into one temporary.
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with translated(path):
            yield temporary
            sync_file(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raises an OSError of the block, which writes `path`, as a KdcompressError that says what to do."""
    try:
        yield
    except OSError as error:
        raise _sentence(path, error) from error


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder, deleted when the block ends.

    It lies on the disk of the final files, so that a rename moves a file to its final name.

    Args:
        path: The folder to create. Leftovers of a killed process there are deleted.

    Raises:
        UserError: The folder around it does not exist or must not be written to.
        WorldError: The disk is full or fails.
    """
    with translated(path):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Waits until the file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a folder; the rename itself has happened.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Computes a file's SHA-256 in hexadecimal.

    Raises:
        UserError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _sentence(path: Path, error: OSError) -> KdcompressError:
    folder = path.parent
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        why = "disk is full" if error.errno == errno.ENOSPC else "disk quota is used up"
        return WorldError(f"{why}: cannot write {path}; free some and run again (distill: with --resume)")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return UserError(f"{folder}: no permission to write here ({error.strerror}); choose another folder")
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return UserError(f"{folder}: no such folder, so {path.name} cannot be written there")
    if error.errno == errno.EISDIR:
        return UserError(f"{path}: is a folder, so no file can be written under this name")
    return WorldError(f"{path}: cannot be written: {error.strerror or error}")
