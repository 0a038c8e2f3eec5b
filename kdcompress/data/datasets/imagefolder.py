"""Your own images: a folder per class, or train/ (with val/, test/) that hold a folder per class.

Images may lie at any depth below their class's folder. Hidden files, and files that are no images by their
name, are passed over. With train/, val/ and test/ the splits are as named; with train/ and val/, val/ is the
test split and the held-out images are cut from train/. `valid/` and `validation/` mean val/.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kdcompress.data.decode import SUFFIXES
from kdcompress.data.image_check import broken_images, image_file
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.data.source import FolderSource
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection

SIZE = 224
CHANNELS = 3

_VAL = ("val", "valid", "validation")
_SPLITS = ("train", *_VAL, "test")
_NAMED = 5  # broken files named in a message


@dataclass(frozen=True, slots=True)
class _Split:
    name: str
    folder: str
    """Relative to the root."""
    classes: dict[str, list[str]]
    """Class name -> its files, relative to the root; classes without files are left out."""
    empty: tuple[str, ...]


def read(section: DataSection, progress: OnProgress | None) -> Raw:
    """The folder's images, those that cannot be read left out.

    Up to `data.max_broken` of all image files may be broken: that share rounded down, but at least one file
    unless it is 0.

    Raises:
        DataError: The folder cannot be used; the message says what is wrong with it.
    """
    root = _root(section)
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
                f"data.root: {_place(root, split)}: {_listed(unknown)} not among the classes of "
                f"{_place(root, train)}"
            )
        if split.empty:
            warnings.append(f"{_place(root, split)}: no images in {_listed(split.empty)}, left out")
        if absent := sorted(set(names) - set(split.classes)):
            warnings.append(f"{_place(root, split)}: no images of the classes {_listed(absent)}")

    files = [
        image_file(root, name)
        for split in splits.values()
        for members in split.classes.values()
        for name in members
    ]
    broken = broken_images(root, files, progress)
    if broken:
        warnings.append(_checked_broken(root, broken, len(files), section.max_broken))
    sources = {name: _source(root, split, names, broken, section) for name, split in splits.items()}
    for name, source in sources.items():
        if len(source) == 0:
            raise DataError(f"data.root: {_place(root, splits[name])}: no image of it can be read")
    left = torch.bincount(sources["train"].labels, minlength=len(names))
    if unread := [name for name, count in zip(names, left.tolist(), strict=True) if count == 0]:
        raise DataError(f"data.root: {_place(root, train)}: no image of {_listed(unread)} can be read")

    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: os.fsencode(file.name)):
        digest.update(b"%s\0%d\0" % (os.fsencode(Path(file.name).as_posix()), file.size))
    return Raw(
        train=sources["train"],
        test=sources.get("test"),
        held_out=sources.get("held_out"),
        class_names=names,
        listing_sha256=digest.hexdigest(),
        augment="resized_crop_flip",
        broken=len(broken),
        warnings=tuple(warnings),
    )


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
    """The folder's splits under the names `train`, `held_out` and `test`, and what to warn of."""
    folders = _folders(root)
    if not folders:
        if any(_is_image(name) for name in _visible(root)):
            raise DataError(
                f"data.root: {root}: images, but no class folders; put each class's images into a folder"
            )
        raise DataError(f"data.root: {root}: the folder is empty; a folder per class is expected")
    named = [name for name in folders if name in _SPLITS]
    if len(named) == len(folders) and "train" not in named:
        raise DataError(f"data.root: {root}: {_listed(named)} but no train/")
    # `train` may also be a class (of vehicles): it is one if it stands beside folders of images that are no
    # splits.
    others = [name for name in folders if name not in _SPLITS]
    beside_classes = len(named) == 1 and any(any(_images(root, Path(name))) for name in others)
    if "train" not in named or beside_classes:
        return {"train": _split(root, "train", "")}, []
    vals = [name for name in named if name in _VAL]
    if len(vals) > 1:
        raise DataError(f"data.root: {root}: {_listed(vals)} mean the same split; keep one")
    splits = {"train": _split(root, "train", "train")}
    if "test" in named:
        splits["test"] = _split(root, "test", "test")
        if vals:
            splits["held_out"] = _split(root, "held_out", vals[0])
    elif vals:
        splits["test"] = _split(root, "test", vals[0])
    return splits, [f"{root}: {_listed(others)} beside train/ left out"] if others else []


def _split(root: Path, name: str, folder: str) -> _Split:
    classes = {each: list(_images(root, Path(folder) / each)) for each in _folders(root / folder)}
    if not classes:
        raise DataError(
            f"data.root: {root / folder}: no class folders; put each class's images into a folder"
        )
    filled = {each: sorted(files) for each, files in classes.items() if files}
    if not filled:
        raise DataError(f"data.root: {root / folder}: no images in its {len(classes)} folders")
    return _Split(name, folder, filled, tuple(each for each, files in classes.items() if not files))


def _images(root: Path, folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Names of the images at any depth, relative to the root. Links are followed, but not in circles."""
    status = (root / folder).stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for name in _visible(root / folder):
        if (root / folder / name).is_dir():
            yield from _images(root, folder / name, above | {here})
        elif _is_image(name):
            yield str(folder / name)


def _visible(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"data.root: {folder}: cannot be listed: {error.strerror}") from None


def _folders(folder: Path) -> list[str]:
    return [name for name in _visible(folder) if (folder / name).is_dir()]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


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


def _checked_broken(root: Path, broken: dict[str, str], count: int, share: float) -> str:
    """The sentence on broken files, unless they are too many."""
    allowed = max(1, int(share * count)) if share > 0 else 0
    named = "; ".join(f"{name} ({why})" for name, why in list(broken.items())[:_NAMED])
    more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    sentence = f"{len(broken)} of {count} image files cannot be read: {named}{more}"
    if len(broken) == count:
        raise DataError(f"data.root: {root}: no image can be read; {named}{more}")
    if len(broken) > allowed:
        raise DataError(
            f"data.root: {root}: {sentence}; data.max_broken allows {allowed}. Repair or remove them, or "
            "raise it"
        )
    return f"{sentence}; left out"


def _place(root: Path, split: _Split) -> Path:
    return root / split.folder


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more
