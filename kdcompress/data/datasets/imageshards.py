"""Your own images in tar shards: a folder of .tar files, read at any position through an index.

Plain `.tar` files in a folder, or in its train/, val/ and test/, as WebDataset's writer makes them (an image
`key.jpg` and its class in `key.cls`) or as `tar` makes them of a folder per class. With `data.dataset:
imagefolder` they are recognised where `data.root` (`--data`) is such a folder, a `.tar` file, or a pattern
such as `train-{0000..0099}.tar`.
"""

from __future__ import annotations

from kdcompress.data.folder_tree import DATA_ROOT
from kdcompress.data.image_splits import NO_CLASS, ListedImages, labelled_images, unlabelled_images
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.data.shard_files import shards_at
from kdcompress.data.shard_layout import listed_shards
from kdcompress.data.tar_index import index_shard
from kdcompress.data.threads import map_in_threads
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection

SIZE = 224
CHANNELS = 3


def read(section: DataSection, progress: OnProgress | None) -> Raw:
    """Returns the images of the shards without those that cannot be read.

    Up to `data.max_broken` of them may be broken, or be links or sparse members.

    Raises:
        DataError: The shards cannot be used; the message names the shard, and the member where it is one.
    """
    listed = _listed(section, progress)
    if _has_no_labels(listed):
        return unlabelled_images(listed, section, progress)
    return labelled_images(listed, section, progress, expected="at least two classes are expected")


def class_names(section: DataSection) -> tuple[str, ...]:
    """Returns the class names of the shards' training images; none if no image has a label.

    Raises:
        DataError: The shards cannot be used.
    """
    listed = _listed(section, None)
    return () if _has_no_labels(listed) else listed.class_names()


def _listed(section: DataSection, progress: OnProgress | None) -> ListedImages:
    if section.root is None:
        raise DataError(f"{DATA_ROOT}: tar shards need their place; pass it with --data DIR")
    place = shards_at(section.root)
    if place is None:
        raise DataError(
            f"{DATA_ROOT}: {section.root}: no tar shards; name a folder of .tar files, one with train/ (and "
            "val/, test/) of them, a .tar file, or a pattern such as train-{0000..0099}.tar"
        )
    root, shards = place
    indexes = map_in_threads(lambda shard: index_shard(root / shard.name), shards, "index shards", progress)
    return listed_shards(root, shards, indexes, labels=section.labels != "none")


def _has_no_labels(listed: ListedImages) -> bool:
    return set(listed.splits["train"].classes) == {NO_CLASS}
