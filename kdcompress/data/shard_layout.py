"""Sorts the images of tar shards by split and class.

Two layouts are usual, and both are read. WebDataset's: each image `key.jpg` has a member `key.cls` beside it,
with its class index or class name. And `tar`'s, of a folder of images: the first folder in a member's path is
the class, perhaps below train/, val/ and test/. One folder around everything, as `tar cf images.tar images`
makes it, counts as none. If any shard holds a `.cls` member, the layout is WebDataset's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdcompress.data.file_list import ImageFile
from kdcompress.data.folder_tree import DATA_ROOT
from kdcompress.data.image_files import quote_names
from kdcompress.data.image_splits import NO_CLASS, ImageSplit, ListedImages, split_roles
from kdcompress.data.shard_files import SPLITS, Shard
from kdcompress.data.tar_index import LABEL_SUFFIX, MemberImage, ShardIndex
from kdcompress.errors import DataError


@dataclass(frozen=True, slots=True)
class _Image:
    """An image in a shard.

    Args:
        shard: Number of its shard.
        member: As the index has it.
        parts: Its path without empty parts and, later, without the folders above the classes.
    """

    shard: int
    member: MemberImage
    parts: tuple[str, ...]


def listed_shards(
    root: Path, shards: Sequence[Shard], indexes: Sequence[ShardIndex], *, labels: bool
) -> ListedImages:
    """Returns the images of shards by split and class.

    Images of a class are in the order of their paths in the shards, whichever shards they are in, so a folder
    of images and its shards have the same order and the same ids.

    Args:
        root: Folder that the shards' names are relative to.
        shards: The shards.
        indexes: Index of each shard.
        labels: False: labels are not read, and each split has the one class `NO_CLASS`. It is also so where
            no image has a label or lies in a folder.

    Raises:
        DataError: There are no images, no training images, or an image without a label.
    """
    place = f"{DATA_ROOT}: {root}"
    images = [
        _Image(number, member, parts)
        for number, index in enumerate(indexes)
        for member in index.images
        if (parts := _visible_parts(member.name))
    ]
    if not images:
        raise DataError(f"{place}: no images in the {len(shards)} tar shards")
    with_labels = any(index.labels for index in indexes)
    images = _unwrapped(images, 1 if with_labels or not labels else 2)
    by_split, warnings = _by_split(images, shards, place)
    labels = labels and (with_labels or any(len(image.parts) > 1 for image in images))
    class_of = _ClassOf(root, shards, indexes, with_labels)
    missing: dict[str, str] = {}
    splits = {}
    roles = split_roles(list(by_split), place)
    for role, name in roles.items():
        classes: dict[str, list[tuple[tuple[str, ...], ImageFile]]] = {}
        for image in by_split[name]:
            file = _file(image, shards, indexes)
            if image.member.problem:
                missing[file.name] = image.member.problem
            label = class_of(image) if labels else NO_CLASS
            classes.setdefault(label, []).append((image.parts, file))
        where = place if len(roles) == 1 else f"{place}: split {name!r}"
        splits[role] = ImageSplit(where, {key: _sorted_files(classes[key]) for key in classes})
    numbered = with_labels and all(name.isascii() and name.isdecimal() for name in splits["train"].classes)
    return ListedImages(
        root, splits, warnings, missing, roles.get("test", "test"),
        labels_listed=labels and with_labels, numbered_classes=numbered,
    )  # fmt: skip


class _ClassOf:
    """Tells the class of an image, by its label member or by its folder.

    Args:
        root: Folder of the shards.
        shards: The shards.
        indexes: Index of each shard.
        with_labels: True: by label members.
    """

    def __init__(
        self, root: Path, shards: Sequence[Shard], indexes: Sequence[ShardIndex], with_labels: bool
    ) -> None:
        self._root, self._shards, self._with_labels = root, shards, with_labels
        texts = {text for index in indexes for text in index.labels.values()}
        self._numbers = all(text.isascii() and text.isdecimal() for text in texts)
        self._labels = [index.labels for index in indexes]
        self._users: dict[tuple[int, str], str] = {}  # label member -> its image

    def __call__(self, image: _Image) -> str:
        """Returns the class name.

        Raises:
            DataError: The image has no label, or shares it with another one.
        """
        return self._by_member(image) if self._with_labels else self._by_folder(image)

    def _by_member(self, image: _Image) -> str:
        name = image.member.name
        key = _label_key(name, self._labels[image.shard])
        if key is None:
            stem = os.path.splitext(name)[0]
            raise DataError(
                f"{self._place(image)}: has no label; other images have a member {LABEL_SUFFIX} beside them, "
                f"so {stem + LABEL_SUFFIX!r} is expected"
            )
        other = self._users.setdefault((image.shard, key), name)
        if other != name:
            raise DataError(
                f"{self._place(image)}: has the same label {key + LABEL_SUFFIX!r} as {other!r}; keep one "
                "image of each key"
            )
        text = self._labels[image.shard][key]
        return str(int(text)) if self._numbers else text

    def _by_folder(self, image: _Image) -> str:
        if len(image.parts) < 2:
            raise DataError(
                f"{self._place(image)}: has no label: it lies in no class's folder, and has no member "
                f"{LABEL_SUFFIX} beside it"
            )
        name = image.parts[0]
        if os.pardir in image.parts:
            raise DataError(f"{self._place(image)}: a path with '..' names no class; pack the folder again")
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                f"{self._place(image)}: the class folder {name!r} is not named in UTF-8; rename it"
            ) from None
        return name

    def _place(self, image: _Image) -> str:
        return f"{DATA_ROOT}: {self._root / self._shards[image.shard].name}: {image.member.name!r}"


def _visible_parts(name: str) -> tuple[str, ...]:
    """Returns the parts of a member's path; none if it is hidden."""
    parts = tuple(part for part in name.split("/") if part not in ("", os.curdir))
    return () if any(part.startswith(".") and part != os.pardir for part in parts) else parts


def _unwrapped(images: list[_Image], below: int) -> list[_Image]:
    """Takes off folders around everything, as long as so many parts stay below them."""
    while True:
        first = images[0].parts[0]
        common = all(len(image.parts) > below and image.parts[0] == first for image in images)
        if not common or first in SPLITS or first == os.pardir:
            return images
        images = [_Image(image.shard, image.member, image.parts[1:]) for image in images]


def _by_split(
    images: Sequence[_Image], shards: Sequence[Shard], place: str
) -> tuple[Mapping[str, list[_Image]], list[str]]:
    """Sorts images by the name of their split, and returns warnings.

    Shards say it by their folder or name; if none does, the first folder in the members' paths does.
    """
    if any(shard.split for shard in shards):
        if unknown := [shard.name for shard in shards if not shard.split]:
            raise DataError(
                f"{place}: {quote_names(unknown)} named for no split beside shards that are; put train, val "
                "or test into each name"
            )
        by_split: dict[str, list[_Image]] = {}
        for image in images:
            by_split.setdefault(shards[image.shard].split, []).append(image)
        _check_train(by_split, place)
        return {name: _without_split(name, members) for name, members in by_split.items()}, []
    firsts = {image.parts[0] for image in images if len(image.parts) > 1}
    named = firsts & set(SPLITS)
    deep = all(len(image.parts) > 2 for image in images if image.parts[0] in named)
    # `train` may also be a class (of vehicles), if it is beside folders that are no splits.
    if not named or not deep or (len(named) == 1 and firsts != named):
        return {"train": list(images)}, []
    by_split = {name: [] for name in SPLITS if name in named}
    others = set[str]()
    for image in images:
        if image.parts[0] in named:
            by_split[image.parts[0]].append(_Image(image.shard, image.member, image.parts[1:]))
        else:
            others.add(image.parts[0])
    _check_train(by_split, place)
    left_out = [f"{place}: {quote_names(sorted(others))} beside train/ left out"] if others else []
    return by_split, left_out


def _check_train(by_split: Mapping[str, list[_Image]], place: str) -> None:
    if "train" not in by_split:
        raise DataError(f"{place}: shards of {quote_names(sorted(by_split))} but none of train")


def _without_split(split: str, images: list[_Image]) -> list[_Image]:
    """Takes off the split's own folder, as `tar cf train.tar train` makes it."""
    if all(len(image.parts) > 1 and image.parts[0] == split for image in images):
        return [_Image(image.shard, image.member, image.parts[1:]) for image in images]
    return images


def _label_key(name: str, labels: Mapping[str, str]) -> str | None:
    """Returns the name of an image's label: that of the image without its suffix, or without all suffixes.

    The latter is WebDataset's rule, for members such as `key.left.jpg`.
    """
    stem = os.path.splitext(name)[0]
    if stem in labels:
        return stem
    folder, _, base = name.rpartition("/")
    key = f"{folder}/{base.split('.')[0]}" if folder else base.split(".")[0]
    return key if key in labels else None


def _file(image: _Image, shards: Sequence[Shard], indexes: Sequence[ShardIndex]) -> ImageFile:
    member = image.member
    name = f"{shards[image.shard].name}/{member.name}"
    return ImageFile(name, member.size, indexes[image.shard].mtime_ns, member.offset)


def _sorted_files(files: list[tuple[tuple[str, ...], ImageFile]]) -> list[ImageFile]:
    return [file for _, file in sorted(files, key=lambda entry: ("/".join(entry[0]), entry[1]))]
