"""Your own images: a folder per class, or train/ (with val/, test/) that hold a folder per class.

Without labels (`data.labels: none`, or a folder of images alone) what lies below the folder, or below its
train/, val/ and test/, is taken as it is.

Images may lie at any depth below their class's folder. Hidden files, and files that are no images by their
name, are passed over. With train/, val/ and test/ the splits are as named; with train/ and val/, val/ is the
test split and the held-out images are cut from train/. `valid/` and `validation/` mean val/.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kdcompress.data.folder_tree import DATA_ROOT, FolderTree
from kdcompress.data.image_files import quote_names
from kdcompress.data.image_splits import (
    NO_CLASS,
    VAL,
    ImageSplit,
    ListedImages,
    labelled_images,
    split_roles,
    unlabelled_images,
)
from kdcompress.data.label_table import SUFFIXES
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection
from kdcompress.user_paths import expand_home

SIZE = 224
CHANNELS = 3

_SPLITS = ("train", *VAL, "test")


def read(section: DataSection, progress: OnProgress | None) -> Raw:
    """Returns the folder's images without those that cannot be read.

    Up to `data.max_broken` of all image files may be broken: that share rounded down, but at least one file
    unless it is 0.

    Raises:
        DataError: The folder cannot be used; the message says what is wrong with it.
    """
    tree = FolderTree(_root(section))
    if section.labels == "none" or _images_alone(tree):
        return _unlabelled(tree, section, progress)
    listed = _listed(tree)
    train = listed.splits["train"]
    for name in sorted(train.classes):
        if not _is_text(name):
            raise DataError(f"{train.place}: the class folder {name!r} is not named in UTF-8; rename it")
    return labelled_images(listed, section, progress, expected="a folder per class is expected, at least two")


def class_names(section: DataSection) -> tuple[str, ...]:
    """Returns the class names from the folder names; none if the folder holds images only.

    Raises:
        DataError: There is no such folder, or no classes can be told from it.
    """
    tree = FolderTree(_root(section))
    if _images_alone(tree):
        return ()
    return tuple(sorted(_listed(tree).splits["train"].classes))


def _unlabelled(tree: FolderTree, section: DataSection, progress: OnProgress | None) -> Raw:
    """Lists every image below the folder, or below its splits, without a label."""
    root = tree.root
    named = [name for name in tree.folders() if name in _SPLITS]
    warnings: list[str] = []
    folders = {"train": ""}
    if "train" in named:
        folders, warnings = _split_folders(tree, named)
    splits = {}
    for name, folder in folders.items():
        files = tree.images(folder)
        if not files:
            raise DataError(f"data.root: {root / folder}: no images")
        splits[name] = ImageSplit(_place(root, folder), {NO_CLASS: files})
    listed = ListedImages(root, splits, warnings, test_name=folders.get("test", "test"))
    return unlabelled_images(listed, section, progress)


def _root(section: DataSection) -> Path:
    if section.root is None:
        raise DataError("data.root: an image folder needs its place; pass it with --data DIR")
    root = expand_home(section.root, "data.root")
    if root.is_file():
        raise DataError(
            f"data.root: {root}: is a file, not a folder; unpack it if it is an archive. "
            f"A table of labels ends in {', '.join(SUFFIXES)}"
        )
    if not root.is_dir():
        raise DataError(f"data.root: {root}: no such folder")
    return root


def _listed(tree: FolderTree) -> ListedImages:
    """Returns the folder's files by split and class."""
    root, folders = tree.root, tree.folders()
    if not folders:
        raise DataError(f"data.root: {root}: the folder is empty; a folder per class is expected")
    named = [name for name in folders if name in _SPLITS]
    if len(named) == len(folders) and "train" not in named:
        raise DataError(f"data.root: {root}: {quote_names(named)} but no train/")
    # `train` may also be a class (of vehicles): it is one if it stands beside folders of images that are no
    # splits.
    others = [name for name in folders if name not in _SPLITS]
    beside_classes = len(named) == 1 and any(tree.images(name) for name in others)
    if "train" not in named or beside_classes:
        return ListedImages(root, {"train": _split(tree, "")}, [])
    folders_by_split, warnings = _split_folders(tree, named)
    splits = {name: _split(tree, folder) for name, folder in folders_by_split.items()}
    return ListedImages(root, splits, warnings, test_name=folders_by_split.get("test", "test"))


def _split_folders(tree: FolderTree, named: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Maps splits to folders, if there is a train/, and returns warnings."""
    folder_of_split = split_roles(named, f"data.root: {tree.root}")
    others = [name for name in tree.folders() if name not in _SPLITS]
    return folder_of_split, [f"{tree.root}: {quote_names(others)} beside train/ left out"] if others else []


def _images_alone(tree: FolderTree) -> bool:
    """Tells a folder of images without folders in it, which has no classes."""
    return not tree.folders() and tree.has_images()


def _split(tree: FolderTree, folder: str) -> ImageSplit:
    root = tree.root
    classes = {each: tree.images(os.path.join(folder, each)) for each in tree.folders(folder)}
    if not classes:
        raise DataError(
            f"data.root: {root / folder}: no class folders; put each class's images into a folder"
        )
    filled = {each: files for each, files in classes.items() if files}
    if not filled:
        raise DataError(f"data.root: {root / folder}: no images in its {len(classes)} folders")
    empty = tuple(each for each, files in classes.items() if not files)
    return ImageSplit(_place(root, folder), filled, empty)


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _place(root: Path, folder: str) -> str:
    return f"{DATA_ROOT}: {root / folder}"
