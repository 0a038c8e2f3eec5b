"""Generated images beside the real ones: a folder or an .npz file, brought to the size of the data.

A folder holds a folder per class, named like the classes of the data, or images alone, which then have no
labels. An .npz file holds `images`, uint8 `[N, H, W, C]`, `[N, C, H, W]` or in grey `[N, H, W]`, and may hold
`labels`, the class numbers `[N]`, -1 for an image without one. Two other pairs of names are read too: `x` and
`y`; `arr_0` and `arr_1`, which is how numpy.savez writes arrays that nobody named, as samplers do.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from psutil import virtual_memory
from torch import Tensor

from kdcompress.archives import UNPACKING_ERRORS, reason_of
from kdcompress.atomic import sha256_of
from kdcompress.data import image_files
from kdcompress.data.batch import no_labels
from kdcompress.data.file_list import FileList, ImageFile
from kdcompress.data.folder_tree import FolderTree
from kdcompress.data.image_check import broken_images
from kdcompress.data.image_files import quote_names
from kdcompress.data.joined import Part
from kdcompress.data.npz import check_declared_sizes
from kdcompress.data.raw import OnProgress
from kdcompress.data.source import FolderSource, MemorySource
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection
from kdcompress.user_paths import expand_home

KEY = "data.extra.root"
ARRAYS = (("images", "labels"), ("x", "y"), ("arr_0", "arr_1"))
"""Names of the arrays in an .npz file; the first pair whose images are there is taken."""


@dataclass(frozen=True, eq=False)
class Extra:
    """Generated images, as large as the real ones and with as many channels.

    Args:
        name: Name of the folder or file, without the folders above it.
        sha256: Hash of the file, or of the names and sizes of the folder's images.
        source: The images; labels of -1 where there are none.
        share: Share of each batch.
        counts: `images` that can be read, how many of them are `labelled`, and `broken` files; later what
            became of them.
        warnings: Sentences for the user.
        license: As the recipe states it.
    """

    name: str
    sha256: str
    source: Part
    share: float
    counts: dict[str, int]
    warnings: tuple[str, ...] = ()
    license: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest's entry."""
        return {
            "name": self.name, "sha256": self.sha256, "counts": self.counts, "license": self.license,
        }  # fmt: skip


def open_extra(
    section: DataSection, class_names: Sequence[str], like: Part, progress: OnProgress | None = None
) -> Extra:
    """Reads and checks the images that `data.extra` names.

    Args:
        section: `data:` of the recipe, with an `extra`.
        class_names: K names of the data's classes. Empty if they are not known: labels are then left out.
        like: The real training images, whose size, channels and cut these take over.
        progress: Called during the check of the image files.

    Raises:
        DataError: They cannot be used; the message says why and what to change.
    """
    assert section.extra is not None
    path = expand_home(section.extra.root, "data.extra.root")
    broken, warnings = 0, list[str]()
    source: Part
    if path.is_dir():
        source, sha256, broken, warnings = _folder(path, section, class_names, like, progress)
    elif path.is_file():
        source, sha256 = _npz(path, class_names, like), sha256_of(path)
    else:
        raise DataError(f"{KEY}: {path}: no such folder or file")
    labelled = source.labels[source.labels >= 0]
    of_class = torch.bincount(labelled, minlength=len(class_names)).tolist()
    if len(labelled) and 0 in of_class:
        absent = [name for name, count in zip(class_names, of_class, strict=True) if count == 0]
        warnings.append(f"{path}: no generated images of the classes {quote_names(absent)}")
    counts = {"images": len(source), "labelled": len(labelled), "broken": broken}
    return Extra(
        path.name, sha256, source, section.extra.share, counts, tuple(warnings), section.extra.license
    )


def _folder(
    root: Path, section: DataSection, class_names: Sequence[str], like: Part, progress: OnProgress | None
) -> tuple[FolderSource, str, int, list[str]]:
    """Returns images, hash of the listing, broken files and warnings."""
    by_label: dict[int, list[ImageFile]] = {}
    warnings = []
    tree = FolderTree(root, KEY)
    here = tree.folders()
    if here and class_names:
        if unknown := sorted(set(here) - set(class_names)):
            raise DataError(
                f"{KEY}: {root}: {quote_names(unknown)} not among the classes of the data, which are "
                f"{quote_names(list(class_names))}; rename the folders, or put images that have no "
                "labels into one folder without folders in it"
            )
        by_label = {label: tree.images(name) for label, name in enumerate(class_names) if name in here}
    else:
        by_label = {-1: tree.images()}
    files = [file for members in by_label.values() for file in members]
    if not files:
        raise DataError(
            f"{KEY}: {root}: no images; a folder per class of the data or images alone are expected"
        )
    broken = broken_images(root, files, progress)
    if broken:
        warnings.append(image_files.broken_sentence(root, broken, len(files), section.max_broken, KEY))
    height, width = like.image_size
    if height != width:
        raise DataError(
            f"{KEY}: {root}: files are cut square, and the images of the data are of {height} x {width} "
            "pixels; pass an .npz file"
        )
    pairs = [
        (label, file) for label, members in by_label.items() for file in members if file.name not in broken
    ]
    source = FolderSource(
        root=root,
        files=FileList.of_files(file for _, file in pairs),
        labels=torch.tensor([label for label, _ in pairs], dtype=torch.int64),
        side=height,
        channels=like.channels,
        # Photographs are cut as the data's own are; images made in the size of a small set are whole.
        crop_share=like.crop_share if isinstance(like, FolderSource) else 1.0,
        fit=section.resize,
    )
    return source, image_files.listing_sha256(files), len(broken), warnings


def _npz(path: Path, class_names: Sequence[str], like: Part) -> MemorySource:
    pixels, labels = _arrays(path)
    images = _images(pixels, path)
    count, channels = images.shape[:2]
    if channels not in {1, like.channels}:
        raise DataError(
            f"{KEY}: {path}: images of {channels} channels, but those of the data have {like.channels}; save "
            "them in grey"
        )
    label_numbers = no_labels(count)
    if labels is not None and class_names:
        label_numbers = _labels(labels, count, class_names, path)
    source = MemorySource(images, label_numbers, channels=like.channels)
    if isinstance(like, MemorySource):
        source = replace(source, pad=like.pad)
    return source if source.image_size == like.image_size else source.with_size(like.image_size)


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{KEY}: {path}: neither a folder nor an .npz file, as numpy.savez writes it")
    try:
        with zipfile.ZipFile(path) as members:
            names_read = {name for pair in ARRAYS for name in pair}
            # Most archives pack: a few megabytes may unpack to more than there is.
            check_declared_sizes(members, arrays=names_read, most_values=virtual_memory().available)
        # What only unpickling could read is refused: that would run code from the file.
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            pair = next((pair for pair in ARRAYS if pair[0] in names), None)
            arrays = {name: archive[name] for name in pair or () if name in names}
    except UNPACKING_ERRORS as error:
        raise DataError(f"{KEY}: {path}: cannot be read: {reason_of(error)}") from None
    if pair is None or not all(isinstance(value, np.ndarray) for value in arrays.values()):
        raise DataError(
            f"{KEY}: {path}: holds {quote_names(names) or 'nothing'}; expected an array 'images' and, "
            "if they have labels, an array 'labels'"
        )
    return arrays[pair[0]], arrays.get(pair[1])


def _images(pixels: NDArray[Any], path: Path) -> Tensor:
    """Reads the images `[N, C, H, W]`."""
    shape = list(pixels.shape)
    if pixels.dtype != np.uint8:
        raise DataError(
            f"{KEY}: {path}: the images are {pixels.dtype}, whose range nobody knows; save them as uint8, "
            "0 to 255"
        )
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and shape[3] in {1, 3}:
        pixels = pixels.transpose(0, 3, 1, 2)
    elif pixels.ndim != 4 or shape[1] not in {1, 3}:
        raise DataError(
            f"{KEY}: {path}: expected images [N, H, W, C] or [N, C, H, W] of 1 or 3 channels, got {shape}"
        )
    if pixels.size == 0:
        raise DataError(f"{KEY}: {path}: no images")
    return torch.from_numpy(pixels)


def _labels(labels: NDArray[Any], count: int, class_names: Sequence[str], path: Path) -> Tensor:
    """Reads the labels `[N]` int64."""
    most = len(class_names) - 1
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise DataError(
            f"{KEY}: {path}: expected {count} labels, one whole number per image, got {labels.dtype} "
            f"{list(labels.shape)}"
        )
    wrong = labels[(labels < -1) | (labels > most)] if labels.dtype.kind == "i" else labels[labels > most]
    if len(wrong):
        raise DataError(
            f"{KEY}: {path}: a label of {wrong[0]}; the classes of the data are numbered 0 to {most}, in the "
            f"order {quote_names(list(class_names))}, and -1 means no label"
        )
    return torch.from_numpy(labels.astype(np.int64))
