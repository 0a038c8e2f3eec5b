"""Checks that image files can be read and are in one split only; the results are cached."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdcompress.atomic import write_json
from kdcompress.data.cache import cache_folder
from kdcompress.data.decode import open_regular, problem_of, quiet_pillow
from kdcompress.data.file_list import ImageFile, encode_name, place_of
from kdcompress.data.raw import OnProgress
from kdcompress.data.shard_member import ShardMember
from kdcompress.data.sound_files import SoundFiles
from kdcompress.data.threads import map_in_threads
from kdcompress.documents import read_document
from kdcompress.errors import DataError, KdcompressError, UserError
from kdcompress.schemas.cache import CheckResult

SCHEMA = "kdcompress.check/2"
_HEAD_BYTES = 4096
_SAVED_AT_ONCE = 20_000
"""Files between two saves of a first check: 20 s of decoding on one core."""


def broken_images(root: Path, files: Sequence[ImageFile], progress: OnProgress | None) -> dict[str, str]:
    """Finds the files that cannot be decoded to their end, and why.

    A file is decoded once, in as many threads as there are cores, and again only if its name, size or time of
    the last write changes: the cache holds a hash of these for each sound file (`SoundFiles`), and the result
    for the whole list. A first check that was interrupted goes on where it was.

    Args:
        root: Folder of the data set.
        files: To check.
        progress: Called with the number of checked files.
    """

    def check() -> dict[str, str]:
        known = SoundFiles(root)
        rest = known.without_known(files)
        problems: dict[str, str] = {}
        for start in range(0, len(rest), _SAVED_AT_ONCE):
            part = rest[start : start + _SAVED_AT_ONCE]
            done = len(files) - len(rest) + start

            def tell(what: str, count: int, _: int, before: int = done) -> None:
                if progress:
                    progress(what, before + count, len(files))

            with quiet_pillow():
                reasons = map_in_threads(
                    lambda file: problem_of(place_of(root, file)), part, "check images", tell
                )
            problems |= {file.name: why for file, why in zip(part, reasons, strict=True) if why is not None}
            known.add(file for file in part if file.name not in problems)
        return problems

    result: dict[str, str] = _cached_result(check, root, "broken", files)
    return result


def shared_images(root: Path, splits: Mapping[str, Sequence[ImageFile]]) -> list[tuple[str, str, str, str]]:
    """Finds files with the same bytes in two splits.

    Args:
        root: Folder of the data set.
        splits: Their files, by the split's name.

    Returns:
        (name of the first split, file there, name of the second split, file there) for each file of a later
        split that an earlier split holds too; each file once.
    """

    def compare() -> list[list[str]]:
        # From cheap to dear: only files of equal size can be equal, and of those most differ in their first
        # bytes.
        members = [(split, file) for split, files in splits.items() for file in files]
        groups = _across_splits(_grouped(members, lambda member: member[1].size))
        groups = _across_splits(
            _regrouped(groups, lambda member: _digest(place_of(root, member[1]), _HEAD_BYTES))
        )
        groups = _across_splits(_regrouped(groups, lambda member: _digest(place_of(root, member[1]), None)))
        result = []
        for group in groups:
            (first_split, first), *others = group  # in the order of `splits`
            result += [
                [first_split, first.name, split, file.name] for split, file in others if split != first_split
            ]
        return result

    everything = [file._replace(name=f"{split}\0{file.name}") for split in splits for file in splits[split]]
    return [(a, b, c, d) for a, b, c, d in _cached_result(compare, root, "shared", everything)]


_Member = tuple[str, ImageFile]


def _grouped(members: Iterable[_Member], key: Callable[[_Member], Any]) -> Iterator[list[_Member]]:
    groups: defaultdict[Any, list[_Member]] = defaultdict(list)
    for member in members:
        groups[key(member)].append(member)
    yield from groups.values()


def _regrouped(groups: list[list[_Member]], key: Callable[[_Member], Any]) -> Iterator[list[_Member]]:
    for group in groups:
        yield from _grouped(group, key)


def _across_splits(groups: Iterable[list[_Member]]) -> list[list[_Member]]:
    return [group for group in groups if len({split for split, _ in group}) > 1]


def _digest(path: Path | ShardMember, count: int | None) -> bytes:
    try:
        with open_regular(path) as file:
            if count is not None:
                return hashlib.sha256(file.read(count)).digest()
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def _cached_result(compute: Callable[[], Any], root: Path, kind: str, files: Sequence[ImageFile]) -> Any:
    digest = hashlib.sha256(os.fsencode(root.resolve()) + b"\0" + kind.encode())
    for name, size, mtime_ns, _ in files:
        digest.update(b"\0%s\0%d\0%d" % (encode_name(name), size, mtime_ns))
    path = cache_folder() / "checks" / f"{digest.hexdigest()}.json"
    stored = _stored_result(path)
    if stored is not None:
        return stored
    result = compute()
    # A cache that cannot be written costs the next run this check, and nothing else.
    with suppress(OSError, KdcompressError):
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = _changed(result, _encoded)
        write_json(path, {"schema": SCHEMA, "sha256": _sum_of(path, encoded), "result": encoded})
    return result


def _stored_result(path: Path) -> Any:
    """Reads a result from the cache; None: there is none, or it is damaged or another's and made again."""
    try:
        document = read_document(path, CheckResult, links=False)
        result = document["result"]
        if document["schema"] != SCHEMA or document["sha256"] != _sum_of(path, result):
            return None
        return _changed(result, _decoded)
    except (UserError, UnicodeError):
        return None


def _sum_of(path: Path, result: Any) -> str:
    """Hashes a result and the list of files that it is about, which names its file."""
    return hashlib.sha256(json.dumps([path.stem, result], sort_keys=True).encode()).hexdigest()


def _changed(result: Any, change: Callable[[str], str]) -> Any:
    """Changes each text of a result."""
    if isinstance(result, dict):
        return {change(name): change(why) for name, why in result.items()}
    return [[change(text) for text in row] for row in result]


# Names of files need not be valid Unicode, and text in a document is: each byte is kept as one character.


def _encoded(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def _decoded(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "surrogatepass")
