"""Makes a data set of listed image files: checked, without the broken ones, by split and class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from kdcompress.data import image_files
from kdcompress.data.batch import no_labels
from kdcompress.data.file_list import FileList, ImageFile
from kdcompress.data.folder_tree import DATA_ROOT
from kdcompress.data.image_check import broken_images
from kdcompress.data.image_files import quote_names
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.data.source import FolderSource
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection

SIZE = 224
"""Side of the images in pixels unless `data.image_size` says another."""
VAL = ("val", "valid", "validation")
"""Names of a validation split."""
NO_CLASS = ""
"""The one class of files without labels."""


@dataclass(frozen=True, slots=True)
class ImageSplit:
    """The files of a split.

    Args:
        place: Its folder or table, which begins messages.
        classes: Class name -> its files; classes without files are left out.
        empty: Classes that are named and have no files.
    """

    place: str
    classes: dict[str, list[ImageFile]]
    empty: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ListedImages:
    """All files of a data set.

    Args:
        root: Folder that their names are relative to.
        splits: By the names `train`, `held_out` and `test`; at least `train`.
        warnings: Sentences for the user.
        missing: Listed name -> why there is no such file; they count as broken.
        test_name: Name of the test split in texts.
        labels_listed: True: a file's class is in a list, not in its path, so the hash of the data has it too.
        numbered_classes: True: class names are whole numbers, and are ordered as such.
    """

    root: Path
    splits: dict[str, ImageSplit]
    warnings: list[str]
    missing: Mapping[str, str] = field(default_factory=dict)
    test_name: str = "test"
    labels_listed: bool = False
    numbered_classes: bool = False

    def class_names(self) -> tuple[str, ...]:
        """Returns the classes of the training images in the order of the labels."""
        return tuple(sorted(self.splits["train"].classes, key=int if self.numbered_classes else None))


def split_roles(named: Sequence[str], place: str) -> dict[str, str]:
    """Maps the splits `train`, `test` and `held_out` to their names, where one is called train.

    Args:
        named: Names of the splits that there are: train, test, and those in `VAL`.
        place: Begins messages.

    Returns:
        With a test split the validation split is held out; without one it is the test split.

    Raises:
        DataError: Two names mean the same split.
    """
    vals = [name for name in named if name in VAL]
    if len(vals) > 1:
        raise DataError(f"{place}: {quote_names(vals)} mean the same split; keep one")
    roles = {"train": "train"}
    if "test" in named:
        roles["test"] = "test"
        if vals:
            roles["held_out"] = vals[0]
    elif vals:
        roles["test"] = vals[0]
    return roles


def labelled_images(
    listed: ListedImages, section: DataSection, progress: OnProgress | None, *, expected: str
) -> Raw:
    """Returns the files that can be read with their labels.

    Args:
        listed: All files.
        section: `data:` of the recipe.
        progress: Called during the check of the files.
        expected: What to give instead of a single class, for the message.

    Raises:
        DataError: There are not two classes, a split has a class that train has not, or too many files are
            broken.
    """
    splits, warnings = listed.splits, list(listed.warnings)
    train = splits["train"]
    if len(train.classes) < 2:
        only = f"only one class ({next(iter(train.classes))!r})" if train.classes else "no images"
        raise DataError(f"{train.place}: {only}; {expected}")
    names = listed.class_names()
    for split in splits.values():
        if unknown := sorted(set(split.classes) - set(names)):
            raise DataError(f"{split.place}: {quote_names(unknown)} not among the classes of {_bare(train)}")
        if split.empty:
            warnings.append(f"{_bare(split)}: no images in {quote_names(split.empty)}, left out")
        if absent := sorted(set(names) - set(split.classes)):
            warnings.append(f"{_bare(split)}: no images of the classes {quote_names(absent)}")
    files, broken, more = _check_files(listed, section, progress)
    sources = _sources(listed, names, broken, section)
    left = torch.bincount(sources["train"].labels, minlength=len(names))
    if unread := [name for name, count in zip(names, left.tolist(), strict=True) if count == 0]:
        raise DataError(f"{train.place}: no image of {quote_names(unread)} can be read")
    return _raw(listed, sources, names, (files, broken), [*warnings, *more])


def unlabelled_images(listed: ListedImages, section: DataSection, progress: OnProgress | None) -> Raw:
    """Returns the files that can be read without labels; each split has the one class `NO_CLASS`.

    Args:
        listed: All files.
        section: `data:` of the recipe.
        progress: Called during the check of the files.

    Raises:
        DataError: Too many files are broken.
    """
    files, broken, more = _check_files(listed, section, progress)
    sources = _sources(listed, (NO_CLASS,), broken, section)
    sources = {name: replace(source, labels=no_labels(len(source))) for name, source in sources.items()}
    return _raw(listed, sources, (), (files, broken), [*listed.warnings, *more])


def _bare(split: ImageSplit) -> str:
    return split.place.removeprefix(f"{DATA_ROOT}: ")


def _check_files(
    listed: ListedImages, section: DataSection, progress: OnProgress | None
) -> tuple[list[ImageFile], dict[str, str], list[str]]:
    """Returns all files, those of them that cannot be read with the reason, and warnings."""
    root = listed.root
    files = [
        file
        for split in listed.splits.values()
        for members in split.classes.values()
        for file in members
        if file.name not in listed.missing
    ]
    broken = {**listed.missing, **broken_images(root, files, progress)}
    count = len(files) + len(listed.missing)
    if not broken:
        return files, broken, []
    return files, broken, [image_files.broken_sentence(root, broken, count, section.max_broken)]


def _sources(
    listed: ListedImages, names: Sequence[str], broken: Mapping[str, str], section: DataSection
) -> dict[str, FolderSource]:
    sources = {}
    for role, split in listed.splits.items():
        files: list[ImageFile] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            sound = [file for file in split.classes.get(name, ()) if file.name not in broken]
            files += sound
            labels += [label] * len(sound)
        if not files:
            raise DataError(f"{split.place}: no image of it can be read")
        side = section.image_size or SIZE
        of_images = torch.tensor(labels, dtype=torch.int64)
        sources[role] = FolderSource(listed.root, FileList.of_files(files), of_images, side)
    return sources


def _raw(
    listed: ListedImages,
    sources: Mapping[str, FolderSource],
    names: tuple[str, ...],
    checked: tuple[list[ImageFile], dict[str, str]],
    warnings: Sequence[str],
) -> Raw:
    files, broken = checked
    digest = image_files.listing_sha256(files)
    if listed.labels_listed:
        rows = sorted(
            f"{role}\0{name}\0{file.name}"
            for role, split in listed.splits.items()
            for name, members in split.classes.items()
            for file in members
        )
        digest = hashlib.sha256("\n".join([digest, *rows]).encode("utf-8", "surrogateescape")).hexdigest()
    return Raw(
        train=sources["train"],
        test=sources.get("test"),
        held_out=sources.get("held_out"),
        class_names=names,
        listing_sha256=digest,
        augment="resized_crop_flip",
        broken=len(broken),
        warnings=tuple(warnings),
        test_name=listed.test_name,
    )
