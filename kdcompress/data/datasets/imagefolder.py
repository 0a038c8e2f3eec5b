"""Your own images: a folder per class, or train/ (with val/, test/) that hold a folder per class.

Without labels (`data.labels: none`, or a folder of images alone) what lies below the folder, or below its
train/, val/ and test/, is taken as it is.

Images may lie at any depth below their class's folder. Hidden files, and files that are no images by their
name, are passed over. With train/, val/ and test/ the splits are as named; with train/ and val/, val/ is the
test split and the held-out images are cut from train/. `valid/` and `validation/` mean val/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kdcompress.data import image_files
from kdcompress.data.batch import no_labels
from kdcompress.data.image_check import ImageFile, broken_images, image_file
from kdcompress.data.image_files import quote_names
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.data.source import FolderSource
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection

SIZE = 224
CHANNELS = 3

_VAL = ("val", "valid", "validation")
_SPLITS = ("train", *_VAL, "test")
_NO_CLASS = ""


@dataclass(frozen=True, slots=True)
class _Split:
    name: str
    folder: str
    """Relative to the root."""
    classes: dict[str, list[str]]
    """Class name -> its files, relative to the root; classes without files are left out."""
    empty: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _FileCheck:
    files: list[ImageFile]
    broken: dict[str, str]
    """Name -> why it cannot be read."""
    warnings: list[str]


def read(section: DataSection, progress: OnProgress | None) -> Raw:
    """Returns the folder's images without those that cannot be read.

    Up to `data.max_broken` of all image files may be broken: that share rounded down, but at least one file
    unless it is 0.

    Raises:
        DataError: The folder cannot be used; the message says what is wrong with it.
    """
    root = _root(section)
    if section.labels == "none" or _images_alone(root):
        return _unlabelled(root, section, progress)
    splits, warnings = _splits(root)
    train = splits["train"]
    if len(train.classes) < 2:
        only = f"only one class ({next(iter(train.classes))!r})" if train.classes else "no images"
        raise DataError(
            f"data.root: {_place(root, train)}: {only}; a folder per class is expected, at least two"
        )
    names = tuple(sorted(train.classes))
    for name in names:
        if not _is_text(name):
            raise DataError(
                f"data.root: {_place(root, train)}: the class folder {name!r} is not named in UTF-8; "
                "rename it"
            )
    for split in splits.values():
        if unknown := sorted(set(split.classes) - set(names)):
            raise DataError(
                f"data.root: {_place(root, split)}: {quote_names(unknown)} not among the classes of "
                f"{_place(root, train)}"
            )
        if split.empty:
            warnings.append(f"{_place(root, split)}: no images in {quote_names(split.empty)}, left out")
        if absent := sorted(set(names) - set(split.classes)):
            warnings.append(f"{_place(root, split)}: no images of the classes {quote_names(absent)}")

    check = _check_files(root, splits, section, progress)
    sources = {name: _source(root, split, names, check.broken, section) for name, split in splits.items()}
    _none_empty(root, splits, sources)
    left = torch.bincount(sources["train"].labels, minlength=len(names))
    if unread := [name for name, count in zip(names, left.tolist(), strict=True) if count == 0]:
        raise DataError(f"data.root: {_place(root, train)}: no image of {quote_names(unread)} can be read")

    return _raw(sources, names, check, warnings)


def class_names(section: DataSection) -> tuple[str, ...]:
    """Returns the class names from the folder names; none if the folder holds images only.

    Raises:
        DataError: There is no such folder, or no classes can be told from it.
    """
    root = _root(section)
    if _images_alone(root):
        return ()
    splits, _ = _splits(root)
    return tuple(sorted(splits["train"].classes))


def _unlabelled(root: Path, section: DataSection, progress: OnProgress | None) -> Raw:
    """Lists every image below the folder, or below its splits, without a label."""
    named = [name for name in image_files.folders(root) if name in _SPLITS]
    warnings: list[str] = []
    folders = {"train": ""}
    if "train" in named:
        folders, warnings = _split_folders(root, named)
    splits = {}
    for name, folder in folders.items():
        files = sorted(image_files.images(root, Path(folder)))
        if not files:
            raise DataError(f"data.root: {root / folder}: no images")
        splits[name] = _Split(name, folder, {_NO_CLASS: files}, ())
    check = _check_files(root, splits, section, progress)
    sources = {
        name: _source(root, split, (_NO_CLASS,), check.broken, section) for name, split in splits.items()
    }
    _none_empty(root, splits, sources)
    sources = {name: replace(source, labels=no_labels(len(source))) for name, source in sources.items()}
    return _raw(sources, (), check, warnings)


def _raw(
    sources: dict[str, FolderSource], names: tuple[str, ...], check: _FileCheck, warnings: Sequence[str]
) -> Raw:
    return Raw(
        train=sources["train"],
        test=sources.get("test"),
        held_out=sources.get("held_out"),
        class_names=names,
        listing_sha256=image_files.listing_sha256(check.files),
        augment="resized_crop_flip",
        broken=len(check.broken),
        warnings=(*warnings, *check.warnings),
    )


def _check_files(
    root: Path, splits: dict[str, _Split], section: DataSection, progress: OnProgress | None
) -> _FileCheck:
    """Lists all files of the splits and those of them that cannot be read."""
    files = [
        image_file(root, name)
        for split in splits.values()
        for members in split.classes.values()
        for name in members
    ]
    broken = broken_images(root, files, progress)
    warnings = [image_files.broken_sentence(root, broken, len(files), section.max_broken)] if broken else []
    return _FileCheck(files, broken, warnings)


def _none_empty(root: Path, splits: dict[str, _Split], sources: dict[str, FolderSource]) -> None:
    for name, source in sources.items():
        if len(source) == 0:
            raise DataError(f"data.root: {_place(root, splits[name])}: no image of it can be read")


def _root(section: DataSection) -> Path:
    if section.root is None:
        raise DataError("data.root: an image folder needs its place; pass it with --data DIR")
    root = Path(section.root).expanduser()
    if root.is_file():
        raise DataError(f"data.root: {root}: is a file, not a folder; unpack it if it is an archive")
    if not root.is_dir():
        raise DataError(f"data.root: {root}: no such folder")
    return root


def _splits(root: Path) -> tuple[dict[str, _Split], list[str]]:
    """Returns the folder's splits by the names `train`, `held_out` and `test`, and warnings."""
    folders = image_files.folders(root)
    if not folders:
        raise DataError(f"data.root: {root}: the folder is empty; a folder per class is expected")
    named = [name for name in folders if name in _SPLITS]
    if len(named) == len(folders) and "train" not in named:
        raise DataError(f"data.root: {root}: {quote_names(named)} but no train/")
    # `train` may also be a class (of vehicles): it is one if it stands beside folders of images that are no
    # splits.
    others = [name for name in folders if name not in _SPLITS]
    beside_classes = len(named) == 1 and any(any(image_files.images(root, Path(name))) for name in others)
    if "train" not in named or beside_classes:
        return {"train": _split(root, "train", "")}, []
    folder_of_split, warnings = _split_folders(root, named)
    return {name: _split(root, name, folder) for name, folder in folder_of_split.items()}, warnings


def _split_folders(root: Path, named: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Maps splits to folders, if there is a train/, and returns warnings."""
    vals = [name for name in named if name in _VAL]
    if len(vals) > 1:
        raise DataError(f"data.root: {root}: {quote_names(vals)} mean the same split; keep one")
    folder_of_split = {"train": "train"}
    if "test" in named:
        folder_of_split["test"] = "test"
        if vals:
            folder_of_split["held_out"] = vals[0]
    elif vals:
        folder_of_split["test"] = vals[0]
    others = [name for name in image_files.folders(root) if name not in _SPLITS]
    return folder_of_split, [f"{root}: {quote_names(others)} beside train/ left out"] if others else []


def _images_alone(root: Path) -> bool:
    """Tells a folder of images without folders in it, which has no classes."""
    return not image_files.folders(root) and any(
        image_files.is_image(name) for name in image_files.visible(root)
    )


def _split(root: Path, name: str, folder: str) -> _Split:
    classes = {
        each: list(image_files.images(root, Path(folder) / each))
        for each in image_files.folders(root / folder)
    }
    if not classes:
        raise DataError(
            f"data.root: {root / folder}: no class folders; put each class's images into a folder"
        )
    filled = {each: sorted(files) for each, files in classes.items() if files}
    if not filled:
        raise DataError(f"data.root: {root / folder}: no images in its {len(classes)} folders")
    return _Split(name, folder, filled, tuple(each for each, files in classes.items() if not files))


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _source(
    root: Path, split: _Split, names: Sequence[str], broken: dict[str, str], section: DataSection
) -> FolderSource:
    files, labels = [], []
    for label, name in enumerate(names):
        sound = [file for file in split.classes.get(name, ()) if file not in broken]
        files += sound
        labels += [label] * len(sound)
    return FolderSource(
        root=root,
        files=tuple(files),
        labels=torch.tensor(labels, dtype=torch.int64),
        side=section.image_size or SIZE,
    )


def _place(root: Path, split: _Split) -> Path:
    return root / split.folder
