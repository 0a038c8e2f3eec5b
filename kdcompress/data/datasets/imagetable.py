"""Your own images with their labels in a table: labels.csv, .tsv or .jsonl in the folder of the images.

A row names an image file, relative to the table's folder, and its class. A column `split` may say train, val
or test; with train and val alone, val is the test split. `data.dataset: imagefolder` takes this data set by
itself where `data.root` (`--data`) is a table, or a folder with `images/` and a table `labels.csv`.
"""

from __future__ import annotations

from pathlib import Path

from kdcompress.data.file_list import ImageFile
from kdcompress.data.folder_tree import DATA_ROOT
from kdcompress.data.image_splits import (
    NO_CLASS,
    VAL,
    ImageSplit,
    ListedImages,
    labelled_images,
    split_roles,
    unlabelled_images,
)
from kdcompress.data.label_table import NAMES, LabelTable, Row, read_table, rows_by_split, table_at
from kdcompress.data.raw import OnProgress, Raw
from kdcompress.errors import DataError
from kdcompress.recipe import DataSection

SIZE = 224
CHANNELS = 3


def read(section: DataSection, progress: OnProgress | None) -> Raw:
    """Returns the table's images without those that are missing or cannot be read.

    Up to `data.max_broken` of them may be missing or broken.

    Raises:
        DataError: The table cannot be used; the message says what is wrong, and in which lines.
    """
    labels = section.labels != "none"
    listed = _listed(read_table(_path(section), labels=labels))
    if not labels:
        return unlabelled_images(listed, section, progress)
    return labelled_images(listed, section, progress, expected="at least two classes are expected")


def class_names(section: DataSection) -> tuple[str, ...]:
    """Returns the class names of the table's training images.

    Raises:
        DataError: The table cannot be used.
    """
    return tuple(sorted(_listed(read_table(_path(section), labels=True)).splits["train"].classes))


def _path(section: DataSection) -> Path:
    if section.root is None:
        raise DataError(f"{DATA_ROOT}: a table of labels needs its place; pass it with --data FILE")
    path = table_at(section.root)
    if path is None:
        raise DataError(
            f"{DATA_ROOT}: {section.root}: no table of labels; name a .csv, .tsv or .jsonl file, or a "
            f"folder with images/ and one of {', '.join(NAMES)}"
        )
    return path


def _listed(table: LabelTable) -> ListedImages:
    """Returns the table's files by split and class."""
    rows = dict(rows_by_split(table))
    place = f"{DATA_ROOT}: {table.path}"
    if "train" not in rows:
        raise DataError(f"{place}: rows of the splits {', '.join(map(repr, rows))}, but none of train")
    named = [name for name in ("train", *VAL, "test") if name in rows]
    roles = split_roles(named, place)
    whole = len(roles) == 1
    splits = {
        role: ImageSplit(place if whole else f"{place}: split {name!r}", _by_class(table, rows[name]))
        for role, name in roles.items()
    }
    return ListedImages(
        table.root, splits, table.warnings, table.missing, roles.get("test", "test"), labels_listed=True
    )


def _by_class(table: LabelTable, rows: list[Row]) -> dict[str, list[ImageFile]]:
    classes: dict[str, list[ImageFile]] = {}
    for row in rows:
        file = table.files.get(row.file) or ImageFile(row.file, 0, 0)  # a missing one counts as broken
        classes.setdefault(row.label or NO_CLASS, []).append(file)
    return {name: sorted(files) for name, files in classes.items()}
