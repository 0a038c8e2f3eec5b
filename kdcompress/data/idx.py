"""Image sets in the four IDX files of MNIST and the sets that took over its form.

IDX, as described on MNIST's page: two zero bytes, a byte for the type of the numbers (8: unsigned byte), a
byte for the number of dimensions, a big-endian 32-bit length per dimension, then the numbers.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcompress.archives import UNPACKING_ERRORS, reason_of, unzipped
from kdcompress.data.cache import cache_folder
from kdcompress.data.fetch import fetch, is_whole
from kdcompress.data.raw import OnProgress
from kdcompress.data.source import MemorySource
from kdcompress.documents import read_bytes
from kdcompress.errors import DataError, DownloadError
from kdcompress.recipe import write_notice
from kdcompress.user_paths import expand_home

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

SIDE = 28
"""Pixels of the images' height and width."""
_UNSIGNED_BYTE = 8
_MOST_BYTES = 1 << 28
"""Of one file: five times the largest one of MNIST."""


@dataclass(frozen=True, slots=True)
class IdxSet:
    """Places of an IDX set.

    Args:
        name: Name in `kdcompress datasets`; also its folder in the cache.
        below: Folder below a root in which other tools keep the files.
        mirrors: URLs of folders with the gzipped files.
        md5: MD5 of each gzipped file.
        system_folders: Folders in which operating systems put the set.
    """

    name: str
    below: str
    mirrors: tuple[str, ...]
    md5: Mapping[str, str]
    system_folders: tuple[str, ...] = ()


def read_splits(
    which: IdxSet, root: str | None, classes: int, progress: OnProgress | None
) -> tuple[MemorySource, MemorySource, str]:
    """Reads the set's splits from the first place that has them.

    Args:
        which: The set.
        root: The only place to look, or None: the cache, the system's folders, then a download into the
            cache.
        classes: K; labels are 0 … K - 1.
        progress: Called during the download.

    Returns:
        (train, test, SHA-256 of all pixels and labels).

    Raises:
        DataError: The folder lacks a file, or a file is not what its name says.
        DownloadError: The set is nowhere and cannot be downloaded.
    """
    paths = _paths(which, root, progress)
    try:
        return _read(paths, classes)
    except DataError as error:
        if root is not None:
            raise
        return _read(_fetch_again(which, paths, error, progress), classes)


def _read(paths: Mapping[str, Path], classes: int) -> tuple[MemorySource, MemorySource, str]:
    train = _split(paths[TRAIN_IMAGES], paths[TRAIN_LABELS], classes)
    test = _split(paths[TEST_IMAGES], paths[TEST_LABELS], classes)
    digest = hashlib.sha256()
    for tensor in (train.images, train.labels, test.images, test.labels):
        digest.update(tensor.contiguous().numpy().data)
    return train, test, digest.hexdigest()


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Reads the array of an IDX file of unsigned bytes, gzipped if its name ends in .gz.

    Raises:
        DataError: It cannot be read, or is no such file; the message names it.
    """
    try:
        content = read_bytes(path, _MOST_BYTES, failure=DataError)
        if path.suffix == ".gz":
            content = unzipped(io.BytesIO(content), _MOST_BYTES)
    except DataError:
        raise
    except UNPACKING_ERRORS as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from None
    header = 4 + 4 * dimensions
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if len(content) < header or content[:4] != magic:
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes in {dimensions} dimensions (it begins with "
            f"{content[:4].hex() or 'nothing'}, expected {magic.hex()})"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise DataError(
            f"{path}: its header promises {' × '.join(map(str, shape))} bytes, the file holds "
            f"{len(content) - header}; it is cut short or damaged, fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def _split(images_path: Path, labels_path: Path, classes: int) -> MemorySource:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise DataError(f"{images_path}: images of {SIDE} × {SIDE} are expected, it holds {images.shape[1:]}")
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}"
        )
    if len(images) == 0:
        raise DataError(f"{images_path}: holds no images")
    if labels.max() >= classes:
        raise DataError(f"{labels_path}: label {labels.max()}, but the classes are 0 to {classes - 1}")
    return MemorySource(torch.from_numpy(images)[:, None], _int64(labels))


def _int64(labels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _paths(which: IdxSet, root: str | None, progress: OnProgress | None) -> dict[str, Path]:
    names = ", ".join(FILES)
    if root is not None:
        folder = expand_home(root, "data.root")
        if not folder.is_dir():
            kind = "is a file, not a folder" if folder.exists() else "no such folder"
            raise DataError(f"data.root: {folder}: {kind}; it should hold {names} (plain or .gz)")
        places = (folder, folder / which.below, folder / which.below.split("/")[0])
        candidates = [_files_in(place) for place in places]
        best = max(candidates, key=len)  # the first of the fullest
        if len(best) < len(FILES):
            missing = ", ".join(name for name in FILES if name not in best)
            raise DataError(
                f"data.root: {folder}: {which.name} needs {missing} (plain or .gz) there or in {which.below}"
            )
        return best
    cache = cache_folder() / "datasets" / which.name
    for place in (cache, *map(Path, which.system_folders)):
        if len(files := _files_in(place)) == len(FILES):
            return files
    return {name: _fetch(which, name, progress) for name in FILES}


def _fetch(which: IdxSet, name: str, progress: OnProgress | None, *, replace: bool = False) -> Path:
    return fetch(
        [f"{mirror}{name}.gz" for mirror in which.mirrors],
        cache_folder() / "datasets" / which.name / f"{name}.gz",
        md5=which.md5[name],
        advice=f"put {', '.join(FILES)} (plain or .gz) into a folder and pass it with --data DIR",
        progress=progress,
        replace=replace,
    )


def _fetch_again(
    which: IdxSet, paths: Mapping[str, Path], error: DataError, progress: OnProgress | None
) -> dict[str, Path]:
    """Downloads the files of the cache that are not what their publisher's checksums say.

    Raises:
        DataError: The error given; there is no such file, or it cannot be downloaded.
    """
    cache = cache_folder() / "datasets" / which.name
    damaged = [
        name
        for name, path in paths.items()
        if path == cache / f"{name}.gz" and not is_whole(path, md5=which.md5[name])
    ]
    if not damaged:
        raise error
    write_notice(f"{error}; it is downloaded again")
    try:
        return {**paths, **{name: _fetch(which, name, progress, replace=True) for name in damaged}}
    except DownloadError:
        raise error from None


def _files_in(folder: Path) -> dict[str, Path]:
    paths = {}
    for name in FILES:
        # `train-images.idx3-ubyte` is what unpacking some archives gives.
        for candidate in (
            name,
            name.replace("-idx", ".idx"),
            f"{name}.gz",
            f"{name.replace('-idx', '.idx')}.gz",
        ):
            if (folder / candidate).is_file():
                paths[name] = folder / candidate
                break
    return paths
