"""A data set before it is cut into splits, resized and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdcompress.data.source import FolderSource, MemorySource

OnProgress = Callable[[str, int, int], None]
"""(what is under way, done, total); called often, from the thread that waits. A total of 0 is not known."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A data set as it comes.

    Args:
        train: All images that are not in an official split below.
        class_names: K names; labels are positions in it.
        listing_sha256: Hash of the set's files or pixels.
        augment: Usual preset of its training images.
        test: The official test split, or None: it is cut from `train`.
        held_out: The official validation split beside a test split, or None.
        license: Licence of the images, or None if not known.
        broken: Image files that cannot be read; they are in none of the splits.
        warnings: Sentences for the user.
        test_name: Name of the test split in texts: that of the folder or table column it was read from.
    """

    train: MemorySource | FolderSource
    class_names: tuple[str, ...]
    listing_sha256: str
    augment: str
    test: MemorySource | FolderSource | None = None
    held_out: MemorySource | FolderSource | None = None
    license: str | None = None
    broken: int = 0
    warnings: tuple[str, ...] = ()
    test_name: str = "test"
