"""Indexes a tar shard: the places of its images and their labels, read once and kept in the cache folder.

The headers are read one after the other, which is one sequential pass over the shard. The index is stored
with the shard's size and time of the last write, and made again when one of them differs. An index that is
damaged is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tarfile
from contextlib import suppress
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from kdcompress.atomic import write_bytes
from kdcompress.data.cache import cache_folder
from kdcompress.data.decode import open_regular
from kdcompress.data.folder_tree import is_image
from kdcompress.documents import read_bytes
from kdcompress.errors import DataError, KdcompressError, UserError

LABEL_SUFFIX = ".cls"
"""End of the name of a member that holds its image's class."""
_MAGIC = b"kdcompress.shard/1\n"
_SUM_BYTES = 32
_MOST_BYTES = 1 << 32  # of a stored index: a hundred bytes for each of forty million images
_MOST_LABEL_BYTES = 1024
# What tarfile raises on damaged headers; OSError has tarfile.TarError's causes too.
_UNREADABLE = (
    tarfile.TarError, OSError, EOFError, ValueError, KeyError, IndexError, OverflowError, RecursionError,
    MemoryError, struct.error,
)  # fmt: skip


class MemberImage(NamedTuple):
    """An image in a shard.

    Args:
        name: Of the member.
        offset: Its first byte in the shard.
        size: Bytes.
        problem: Why it cannot be read, or an empty text.
    """

    name: str
    offset: int
    size: int
    problem: str


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The images and labels of a shard.

    Args:
        mtime_ns: Time of the shard's last write, in ns since the epoch.
        images: In the shard's order; members named like images, whatever they hold.
        labels: Name of a label member without its suffix -> its text.
    """

    mtime_ns: int
    images: list[MemberImage] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)


def index_shard(path: Path) -> ShardIndex:
    """Returns a shard's index, from the cache folder or by reading all headers of the shard.

    Raises:
        DataError: It cannot be read, is no plain tar file, is truncated or damaged, holds two members of one
            name, or a label that is no line of text.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    stored_at = _stored_at(path)
    index = _stored(stored_at, status)
    if index is None:
        index = _scanned(path, status)
        # A cache that cannot be written costs the next run this pass, and nothing else.
        with suppress(OSError, KdcompressError):
            stored_at.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(stored_at, _encoded(index, status))
    return index


def _stored_at(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    return cache_folder() / "shards" / f"{name}.index"


def _encoded(index: ShardIndex, status: os.stat_result) -> bytes:
    # ASCII: names of members need not be valid Unicode.
    columns = [status.st_size, status.st_mtime_ns, [list(image) for image in index.images], index.labels]
    content = json.dumps(columns).encode("ascii")
    return _MAGIC + hashlib.sha256(content).digest() + content


def _stored(file: Path, status: os.stat_result) -> ShardIndex | None:
    """Reads a stored index; None: there is none, or it is damaged or of another content of the shard."""
    try:
        stored = read_bytes(file, _MOST_BYTES, links=False)
    except UserError:
        return None
    start = len(_MAGIC) + _SUM_BYTES
    content = stored[start:]
    if stored[:start] != _MAGIC + hashlib.sha256(content).digest():
        return None
    try:
        size, mtime_ns, images, labels = json.loads(content)
        members = [MemberImage(*image) for image in images]
        labels_are_text = all(isinstance(label, str) and label.isprintable() for label in labels.values())
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None  # its sum is right, and it is of another program
    if (size, mtime_ns) != (status.st_size, status.st_mtime_ns) or not labels_are_text:
        return None
    if not all(_lies_within(member, status.st_size) for member in members):
        return None
    return ShardIndex(mtime_ns, members, labels)


def _lies_within(member: MemberImage, shard_bytes: int) -> bool:
    """Tells if a stored entry has values of the right types and its bytes are in the shard."""
    # Pydantic's text has no lone surrogates, which names of members may have.
    if type(member.name) is not str or type(member.problem) is not str:
        return False
    if type(member.offset) is not int or type(member.size) is not int or min(member[1:3]) < 0:
        return False
    # A link or a sparse file is not read, and its size need not be in the shard.
    return bool(member.problem) or member.offset + member.size <= shard_bytes


def _scanned(path: Path, status: os.stat_result) -> ShardIndex:
    """Reads all headers of a shard."""
    index, names = ShardIndex(status.st_mtime_ns), set[str]()
    last = "its beginning"
    try:
        with (
            open_regular(path) as file,
            tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar,
        ):
            end = 0
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                if member.size < 0 or tar.offset <= end:
                    raise tarfile.ReadError(f"a member of {member.size} bytes")
                end = tar.offset
                last = repr(member.name)
                if member.isdir():
                    continue
                if member.name in names:
                    raise DataError(f"{path}: two members are named {member.name!r}; keep one")
                names.add(member.name)
                _add(index, path, member, file)
            _check_end(path, file, end, status.st_size, last)
    except DataError:
        raise
    except _UNREADABLE as error:
        why = str(error).split("\n", 1)[0] or type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            why = error.strerror
        raise DataError(
            f"{path}: cannot be read as a plain tar file after {last} ({why}); it may be truncated, damaged "
            "or compressed. Copy it again, or unpack a compressed one"
        ) from None
    now = os.stat(path)
    if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
        raise DataError(f"{path}: was written to while it was read; run again when it is complete")
    return index


def _add(index: ShardIndex, path: Path, member: tarfile.TarInfo, file: BufferedReader) -> None:
    name, problem = member.name, ""
    if not member.isreg():
        problem = "is a link in the shard" if member.issym() or member.islnk() else "is no regular member"
        problem += "; pack with tar --dereference --hard-dereference" if "link" in problem else ""
    elif member.issparse():
        problem = "is stored as a sparse file; pack without --sparse"
    if is_image(name):
        index.images.append(MemberImage(name, member.offset_data, member.size, problem))
    elif name.endswith(LABEL_SUFFIX):
        if problem:
            raise DataError(f"{path}: {name!r} {problem}")
        index.labels[name.removesuffix(LABEL_SUFFIX)] = _label(path, member, file)


def _label(path: Path, member: tarfile.TarInfo, file: BufferedReader) -> str:
    """Reads the class that a label member holds."""
    content = b""
    if member.size <= _MOST_LABEL_BYTES:
        content = os.pread(file.fileno(), member.size, member.offset_data)
    try:
        text = content.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable():
        raise DataError(
            f"{path}: {member.name!r} holds no label; one line of UTF-8 text is expected, a class index or a "
            "class name"
        )
    return text


def _check_end(path: Path, file: BufferedReader, end: int, size: int, last: str) -> None:
    """Refuses a shard whose list of members ends before its mark: tarfile takes a damaged header for the end.

    Raises:
        DataError: It is truncated or damaged.
    """
    block = os.pread(file.fileno(), tarfile.BLOCKSIZE, end)
    if block == bytes(tarfile.BLOCKSIZE):
        return
    if end >= size or len(block) < tarfile.BLOCKSIZE:
        raise DataError(f"{path}: is truncated after {last}: a tar's end mark is missing; copy it again")
    raise DataError(f"{path}: is damaged: what follows {last} at byte {end} is no header; copy it again")
