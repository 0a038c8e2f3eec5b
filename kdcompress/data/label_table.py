"""Reads a table of image files and their labels: .csv or .tsv with a line of column names, or JSON lines.

A column is known by its name, in any case: the file (`PATHS`), the class (`LABELS`) and, where there is one,
the split (`SPLITS`). Other columns are passed over. A class named by a number stays a name. Delimiters are
the comma, the semicolon and the tab; the text is UTF-8, with or without a byte-order mark.
"""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompress.data.file_list import ImageFile
from kdcompress.data.folder_tree import DATA_ROOT, is_image
from kdcompress.data.image_files import quote_names
from kdcompress.data.table_records import (
    LABELS,
    LISTED,
    MOST_REPEATS,
    PATHS,
    SPLITS,
    Problems,
    column_name,
    csv_records,
    json_records,
    lines_of,
    open_table,
)
from kdcompress.errors import DataError, suggest
from kdcompress.user_paths import expand_home

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Ends of the names of tables; the last two are JSON lines."""
NAMES = tuple(f"labels{suffix}" for suffix in SUFFIXES)
"""Names of a table beside a folder `images`."""
IMAGES = "images"

_SPLIT_VALUES = {
    "train": "train", "training": "train", "val": "val", "valid": "valid", "validation": "validation",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
_MOST_REPEATS_PER_FILE = 50
"""Rows that repeat another, where there are many files: a table may have a row per object in a picture."""
_MOST_MISSING = 100_000
"""Files at the beginning of a table of which not one is there."""
_ODD_PARTS = frozenset(["", ".", ".."])  # of a path that is not in its shortest form


@dataclass(frozen=True, slots=True)
class Row:
    """A checked row of a table.

    Args:
        line: Its line in the table, from 1.
        file: Name relative to the table's folder.
        label: Class name; empty if the table was read without labels.
        split: train, val, valid, validation or test; empty without a column of splits.
    """

    line: int
    file: str
    label: str
    split: str


@dataclass(frozen=True, slots=True)
class LabelTable:
    """The rows of a table, each file once.

    Args:
        path: The table.
        root: Its folder, which the files' names are relative to.
        rows: In the table's order.
        files: Name -> the file with size and time, of those that are there.
        missing: Name of a file that is not there -> why, with its line. Its rows are in `rows` too.
        warnings: Sentences for the user.
    """

    path: Path
    root: Path
    rows: list[Row]
    files: dict[str, ImageFile]
    missing: dict[str, str]
    warnings: list[str]


def table_at(root: str | None) -> Path | None:
    """Returns the table that a place of data is or holds, or None if it is something else.

    Args:
        root: A file that is named like a table, or a folder with `images/` and one of `NAMES`.

    Raises:
        DataError: The folder has several tables.
    """
    if root is None:
        return None
    path = expand_home(root, "data.root")
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        return path
    if not (path / IMAGES).is_dir():
        return None
    tables = [name for name in NAMES if (path / name).is_file()]
    if len(tables) > 1:
        raise DataError(
            f"{DATA_ROOT}: {path}: {quote_names(tables)} are both tables of labels; name one of them"
        )
    return path / tables[0] if tables else None


def read_table(path: Path, *, labels: bool) -> LabelTable:
    """Reads and checks a table.

    Args:
        path: The table.
        labels: True: every row needs a label. False: labels are not read.

    Raises:
        DataError: It cannot be read, lacks a column, is empty, or a row is wrong: it names a file outside of
            the table's folder or no image, has no label or no known split, or contradicts another row.
    """
    where = f"{DATA_ROOT}: {path}"
    problems = Problems(where)
    with open_table(path, where) as file:
        lines = lines_of(file, where)
        json_lines = path.suffix.lower() in SUFFIXES[2:]
        columns, records = (
            json_records(lines, problems) if json_lines else csv_records(lines, where, problems)
        )
        of_file, of_label, of_split = _roles(columns, where, labels=labels)
        root = Path(os.path.abspath(path.parent))
        rows = _Rows(path, problems)
        try:
            for line, record in records:
                file_name = _value(record.get(of_file))
                label = _value(record.get(of_label)) if of_label else ""
                split = _value(record.get(of_split)) if of_split else ""
                problem = _problem(root, file_name, label if of_label else None, split if of_split else None)
                if problem is not None:
                    problems.add(line, problem)
                    continue
                inside = _inside(root, str(file_name))
                assert inside is not None, "or it is a problem"
                rows.add(Row(line, inside, str(label), _SPLIT_VALUES[str(split).lower()] if of_split else ""))
        except csv.Error as error:
            raise DataError(f"{where}: {error}") from None
    problems.refuse()
    if not rows.first:
        raise DataError(f"{where}: the table has no rows; a row per image is expected")
    return _place_files(path, root, rows)


class _Rows:
    """The rows of a table, each file once.

    Args:
        path: The table.
        problems: Receives the rows that contradict an earlier one.

    Attributes:
        first: Name of a file -> its first row.
    """

    def __init__(self, path: Path, problems: Problems) -> None:
        self.path, self.first, self._problems = path, dict[str, Row](), problems
        self._doubled, self._count = list[str](), 0

    def add(self, row: Row) -> None:
        """Adds a row.

        Raises:
            DataError: Too many rows repeat another, or contradict one.
        """
        before = self.first.setdefault(row.file, row)
        if before is row:
            if len(self.first) == _MOST_MISSING:
                self._check_any_is_there()
            return
        for what, one, other in (("", before.label, row.label), ("split ", before.split, row.split)):
            if one != other:
                now, then = f"{what}{other!r}", f"{what}{one!r} in line {before.line}"
                self._problems.add(row.line, f"{row.file!r} is {now}, and {then}")
                return
        self._count += 1
        if len(self._doubled) < LISTED:
            self._doubled.append(f"{row.file} (lines {before.line} and {row.line})")
        if self._count > max(MOST_REPEATS, _MOST_REPEATS_PER_FILE * len(self.first)):
            raise DataError(
                f"{self._problems.where}: {self._count:,} rows repeat a file, such as "
                f"{self._doubled[0]}; keep one row for each file"
            )

    def _check_any_is_there(self) -> None:
        root = self.path.parent
        places = [root, root / IMAGES] if (root / IMAGES).is_dir() else [root]
        if not any(os.path.lexists(place / name) for name in self.first for place in places):
            row = next(iter(self.first.values()))
            raise DataError(
                f"{self._problems.where}: not one of its first {_MOST_MISSING:,} files is there, such as "
                f"{row.file!r} in line {row.line}; names are relative to the table's folder"
            )

    def warnings(self) -> list[str]:
        """Returns a sentence about the rows that repeat another."""
        if not self._count:
            return []
        count = "1 row repeats" if self._count == 1 else f"{self._count} rows repeat"
        more = f" and {self._count - LISTED} more" if self._count > LISTED else ""
        return [f"{self.path}: {count} a file, counted once: {', '.join(self._doubled)}{more}"]


def _roles(columns: Sequence[str], where: str, *, labels: bool) -> tuple[str, str | None, str | None]:
    """Returns the columns of files, labels and splits."""
    listed = f"columns found: {', '.join(map(repr, columns)) if columns else 'none'}"
    filled = [name for name in columns if name]  # a spreadsheet may write more delimiters than names
    if len(set(filled)) < len(filled):
        raise DataError(f"{where}: two columns of the same name; {listed}")

    def column(names: Sequence[str], what: str, *, required: bool) -> str | None:
        fitting = [name for name in columns if column_name(name) in names]
        if len(fitting) > 1:
            raise DataError(f"{where}: {quote_names(fitting)} are both columns of {what}; keep one; {listed}")
        if not fitting and required:
            raise DataError(
                f"{where}: no column of {what}; {listed}. Name it {names[0]!r} in the first line "
                f"({', '.join(names[1:4])} and others are known too)"
            )
        return fitting[0] if fitting else None

    file = column(PATHS, "image files", required=True)
    assert file is not None
    label = column(LABELS, "labels", required=True) if labels else None
    return file, label, column(SPLITS, "splits", required=False)


def _value(value: Any) -> str | None:
    """Returns a field as text; None: it is neither a text nor a number."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip() if isinstance(value, str | int | float) else None


def _problem(root: Path, file: str | None, label: str | None, split: str | None) -> str | None:
    """Explains what is wrong with a row's values; None: nothing. `split` None: there is no such column."""
    if not file:
        return "no image file"
    if not is_image(file):
        return f"{file!r} is no image file by its name"
    if _inside(root, file) is None:
        return f"{file!r} lies outside of the table's folder; copy the images there"
    if label == "":
        return "no label"
    try:
        f"{file}{label}".encode()
    except UnicodeEncodeError:
        return "is no valid Unicode"
    if split is not None and split.lower() not in _SPLIT_VALUES:
        known = ("train", "val", "test")
        return f"split {split!r}: expected train, val or test{suggest(split, known)}" if split else "no split"
    return None


def _place_files(path: Path, root: Path, rows: _Rows) -> LabelTable:
    """Looks at the files of the rows, and finds missing ones."""
    # The files of `labels.csv` beside `images/` are often named from there on.
    all_rows = list(rows.first.values())
    if (root / IMAGES).is_dir() and not any(os.path.exists(root / row.file) for row in all_rows):
        all_rows = [Row(row.line, os.path.join(IMAGES, row.file), row.label, row.split) for row in all_rows]
    folder = _Folder(root)
    files: dict[str, ImageFile] = {}
    missing: dict[str, str] = {}
    for row in all_rows:
        file = folder.file(row.file)
        if isinstance(file, str):
            missing[row.file] = f"line {row.line}: {file}"
        else:
            files[row.file] = file
    return LabelTable(path, root, all_rows, files, missing, rows.warnings())


def _inside(root: Path, file: str) -> str | None:
    """Returns a file's name relative to the folder, or None if it points out of it.

    What is read is this name below the folder, so `..` cannot leave it; links are looked at by `_Folder`.
    """
    if "\0" in file:
        return None
    if "\\" not in file and not _ODD_PARTS.intersection(file.split("/")):
        return file
    relative = os.path.relpath(os.path.join(root, file.replace("\\", "/")), root)
    return None if relative == os.pardir or relative.startswith(os.pardir + os.sep) else relative


class _Folder:
    """The folder of a table, out of which no link leads: who wrote the table need not be who runs it.

    Args:
        root: The folder; a link here is followed wherever it leads.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._real = root, os.path.realpath(root)
        self._known: dict[str, bool] = {}

    def file(self, name: str) -> ImageFile | str:
        """Looks at a file; gives the reason if there is no regular file to read."""
        path = os.path.join(self._root, name)
        try:
            status = os.lstat(path)
            inside = self._holds(os.path.dirname(name))
            if inside and stat.S_ISLNK(status.st_mode):
                inside, status = self._holds(name), os.stat(path)
        except OSError as error:
            return "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)
        if not inside:
            return "a link leads out of the table's folder; copy what it leads to there (cp -L)"
        if not stat.S_ISREG(status.st_mode):
            return "is no regular file"
        return ImageFile(name, status.st_size, status.st_mtime_ns)

    def _holds(self, name: str) -> bool:
        """Tells if what a name leads to lies in the folder; a name is looked up once."""
        if name not in self._known:
            path = os.path.realpath(os.path.join(self._root, name))
            self._known[name] = os.path.commonpath([self._real, path]) == self._real
        return self._known[name]


def rows_by_split(table: LabelTable) -> Iterator[tuple[str, list[Row]]]:
    """Yields the splits of a table with their rows; without a column of splits one, called train."""
    splits: dict[str, list[Row]] = {}
    for row in table.rows:
        splits.setdefault(row.split or "train", []).append(row)
    yield from splits.items()
