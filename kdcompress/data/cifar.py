"""The CIFAR sets in their "python version": pickled batches, in a folder or in the archive they come in.

The batches are pickles, and a pickle can run code. They are therefore read by an unpickler that builds
arrays, text and numbers and refuses everything else.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcompress.archives import UNPACKING_ERRORS, reason_of
from kdcompress.data.cache import cache_folder
from kdcompress.data.decode import open_regular
from kdcompress.data.fetch import fetch, is_whole
from kdcompress.data.raw import OnProgress
from kdcompress.data.source import MemorySource
from kdcompress.documents import read_bytes
from kdcompress.errors import DataError, DownloadError
from kdcompress.recipe import write_notice
from kdcompress.user_paths import expand_home

SIDE = 32
"""Pixels of the images' height and width."""
_IMAGE_BYTES = 3 * SIDE * SIDE
_MOST_BYTES = 1 << 28
"""Of one batch; CIFAR-100's largest has 155 MB."""


@dataclass(frozen=True, slots=True)
class CifarSet:
    """Files of a CIFAR set.

    Args:
        name: Name in `kdcompress datasets`; also its folder in the cache.
        folder: Folder of the unpacked archive.
        archive: File name of the archive.
        url: Address of the download.
        md5: MD5 of the archive.
        train: File names of the training batches.
        test: File name of the test batch.
        labels: Key of the labels within a batch.
    """

    name: str
    folder: str
    archive: str
    url: str
    md5: str
    train: tuple[str, ...]
    test: str
    labels: str


def read_splits(
    which: CifarSet, root: str | None, classes: int, progress: OnProgress | None
) -> tuple[MemorySource, MemorySource, str]:
    """Reads the set's splits from the first place that has them.

    Args:
        which: The set.
        root: The only place to look, or None: the cache, then a download into it.
        classes: K; labels are 0 … K - 1.
        progress: Called during the download.

    Returns:
        (train, test, SHA-256 of all pixels and labels).

    Raises:
        DataError: A file is missing or damaged.
        DownloadError: The set is nowhere and cannot be downloaded.
    """
    place = _place(which, root, progress)
    try:
        return _read(place, which, classes)
    except DataError as error:
        archive = cache_folder() / "datasets" / which.name / which.archive
        if root is not None or place != archive or is_whole(archive, md5=which.md5):
            raise
        write_notice(f"{error}; it is downloaded again")
        try:
            place = _fetch(which, progress, replace=True)
        except DownloadError:
            raise error from None
    return _read(place, which, classes)


def _read(place: Path, which: CifarSet, classes: int) -> tuple[MemorySource, MemorySource, str]:
    contents = _contents(place, which)
    train = [_batch(contents[name], name, which.labels, classes) for name in which.train]
    test = _batch(contents[which.test], which.test, which.labels, classes)
    joined = MemorySource(torch.cat([b.images for b in train]), torch.cat([b.labels for b in train]))
    digest = hashlib.sha256()
    for tensor in (joined.images, joined.labels, test.images, test.labels):
        digest.update(tensor.contiguous().numpy().data)
    return joined, test, digest.hexdigest()


def unpickle_arrays(content: bytes, source: str) -> Any:
    """Unpickles an object made of arrays, text, bytes, numbers and their containers.

    Args:
        content: The pickle; one written by Python 2 is fine.
        source: Name in the error message.

    Raises:
        DataError: It is damaged, or asks for anything else; nothing of it has been run.
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except (
        pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
        ImportError, OverflowError, MemoryError, SyntaxError, RecursionError,
    ) as error:  # fmt: skip
        raise DataError(f"{source}: not a CIFAR batch, or damaged: {error}") from None


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in {"latin1", "latin-1"}:
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


# Its module's name differs between NumPy 1 and 2.
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused and was not run")
        return _ALLOWED[module, name]


def _batch(content: bytes, source: str, labels_key: str, classes: int) -> MemorySource:
    document = unpickle_arrays(content, source)
    if not isinstance(document, dict):
        raise DataError(f"{source}: not a CIFAR batch")
    # Batches pickled with bytes keys are around too.
    document = {
        key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in document.items()
    }
    images, labels = document.get("data"), document.get(labels_key)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (_IMAGE_BYTES,):
        raise DataError(f"{source}: expected 'data' of {_IMAGE_BYTES} bytes per image")
    if not isinstance(labels, list) or len(labels) != len(images) or len(labels) == 0:
        raise DataError(
            f"{source}: expected {labels_key!r} with a label for each of the {len(images)} images"
        )
    if not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        raise DataError(f"{source}: a label is not one of 0 to {classes - 1}")
    pixels = torch.from_numpy(images.reshape(-1, 3, SIDE, SIDE).copy())
    return MemorySource(pixels, torch.tensor(labels, dtype=torch.int64))


def _advice(which: CifarSet) -> str:
    return f"put {which.archive} or the folder {which.folder} into a folder and pass it with --data DIR"


def _fetch(which: CifarSet, progress: OnProgress | None, *, replace: bool = False) -> Path:
    path = cache_folder() / "datasets" / which.name / which.archive
    advice = _advice(which)
    return fetch([which.url], path, md5=which.md5, advice=advice, progress=progress, replace=replace)


def _place(which: CifarSet, root: str | None, progress: OnProgress | None) -> Path:
    advice = _advice(which)
    if root is None:
        cache = cache_folder() / "datasets" / which.name
        for place in (cache / which.folder, cache / which.archive):
            if place.exists():
                return place
        return _fetch(which, progress)
    folder = expand_home(root, "data.root")
    if not folder.is_dir():
        kind = "is a file, not a folder" if folder.exists() else "no such folder"
        raise DataError(f"data.root: {folder}: {kind}; {advice}")
    if (folder / which.test).is_file():
        return folder
    for place in (folder / which.folder, folder / which.archive):
        if place.exists():
            return place
    raise DataError(f"data.root: {folder}: holds no {which.name}; {advice}")


def _contents(place: Path, which: CifarSet) -> dict[str, bytes]:
    names: Sequence[str] = (*which.train, which.test)
    try:
        if place.is_dir():
            present = [name for name in names if (place / name).is_file()]
            contents = {name: read_bytes(place / name, _MOST_BYTES, failure=DataError) for name in present}
        else:
            contents = {}
            with open_regular(place) as opened, tarfile.open(fileobj=opened) as archive:
                for member in archive:
                    folder, _, name = member.name.rpartition("/")
                    file = (
                        archive.extractfile(member)
                        if folder.endswith(which.folder) and name in names
                        else None
                    )
                    if file is not None:
                        if member.size > _MOST_BYTES:
                            raise ValueError(f"{member.name} has {member.size:,} bytes, so it is no batch")
                        contents[name] = file.read()
    except DataError:
        raise
    except UNPACKING_ERRORS as error:
        raise DataError(f"{place}: cannot be read: {reason_of(error)}") from None
    if missing := [name for name in names if name not in contents]:
        raise DataError(f"{place}: lacks {', '.join(missing)} of {which.name}")
    return contents
