"""Warns of data that leads to poor or too good figures: small, unequal classes, images in two splits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdcompress.data.class_weights import unequal_classes
from kdcompress.data.image_check import shared_images
from kdcompress.data.source import FolderSource, MemorySource

TINY_CLASS = 10
"""Training images below which a class is warned of."""
_NAMED = 5


def warn_of_tiny_classes(labels: Tensor, class_names: Sequence[str]) -> list[str]:
    """Names the classes that have few training images.

    Args:
        labels: `[N]` int64; -1 means no label.
        class_names: K names.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=len(class_names)).tolist()
    tiny = [(count, name) for name, count in zip(class_names, counts, strict=True) if count < TINY_CLASS]
    if not tiny:
        return []
    named = ", ".join(f"{name!r} ({count})" for count, name in sorted(tiny)[:_NAMED])
    more = f" and {len(tiny) - _NAMED} more" if len(tiny) > _NAMED else ""
    classes = "1 class has" if len(tiny) == 1 else f"{len(tiny)} classes have"
    return [f"{classes} fewer than {TINY_CLASS} training images: {named}{more}"]


def warn_of_unequal_classes(labels: Tensor, class_names: Sequence[str]) -> list[str]:
    """Says that classes are unequal, since other figures and weights of the loss apply then.

    Args:
        labels: `[N]` int64; -1 means no label.
        class_names: K names.
    """
    counts = torch.bincount(labels[labels >= 0], minlength=len(class_names)).tolist()
    if not unequal_classes(counts):
        return []
    ordered = sorted((count, name) for name, count in zip(class_names, counts, strict=True) if count)
    (fewest, rarest), (most, commonest) = ordered[0], ordered[-1]
    return [
        f"the classes are unequal: {commonest!r} has {most:,} training images, {rarest!r} has {fewest:,}. So "
        "the loss is weighted (train.class_weights). Where the scored images are also unequal, balanced "
        "top-1 decides, the mean over the classes"
    ]


def warn_of_shared_images(splits: dict[str, MemorySource | FolderSource]) -> list[str]:
    """Warns if image files are in two splits: what is measured on them is then too good.

    Args:
        splits: By the names that the user knows; one is `train`.
    """
    folders = {name: source for name, source in splits.items() if isinstance(source, FolderSource)}
    if not folders:
        return []
    root = folders["train"].root
    files = {name: source.file_list.image_files(root) for name, source in folders.items()}
    shared = shared_images(root, files)
    if not shared:
        return []
    first, one, second, other = shared[0]
    count = "1 image stands" if len(shared) == 1 else f"{len(shared)} images stand"
    return [
        f"{count} in two splits, for example {one} ({first}) and {other} ({second}); "
        "what is measured on them is too good"
    ]
