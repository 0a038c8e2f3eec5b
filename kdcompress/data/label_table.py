"""Reads a table of image files and their labels: .csv or .tsv with a line of column names, or JSON lines.

A column is known by its name, in any case: the file (`PATHS`), the class (`LABELS`) and, where there is one,
the split (`SPLITS`). Other columns are passed over. A class named by a number stays a name. Delimiters are
the comma, the semicolon and the tab; the text is UTF-8, with or without a byte-order mark.
"""

from __future__ import annotations

import csv
import io
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompress.data.file_list import ImageFile
from kdcompress.data.folder_tree import DATA_ROOT, is_image
from kdcompress.data.image_files import quote_names
from kdcompress.documents import parse_json, read_bytes
from kdcompress.errors import DataError, suggest
from kdcompress.user_paths import expand_home

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Ends of the names of tables; the last two are JSON lines."""
NAMES = tuple(f"labels{suffix}" for suffix in SUFFIXES)
"""Names of a table beside a folder `images`."""
IMAGES = "images"

PATHS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "img", "image_path",
    "img_path", "image_file", "image_name", "image_filename", "relative_path",
)  # fmt: skip
LABELS = (
    "label", "class", "category", "target", "labels", "class_name", "classname", "class_label", "label_name",
    "category_name", "ground_truth",
)  # fmt: skip
SPLITS = ("split", "subset", "set", "partition")

_SPLIT_VALUES = {
    "train": "train", "training": "train", "val": "val", "valid": "valid", "validation": "validation",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
_MOST_BYTES = 1 << 31
"""A hundred bytes for each of twenty million images."""
_DELIMITERS = (",", ";", "\t")
_ODD_PARTS = frozenset(["", ".", ".."])  # of a path that is not in its shortest form
_LISTED = 5  # problems listed in one message


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
    text = _text(path, where)
    json_lines = path.suffix.lower() in SUFFIXES[2:]
    columns, records = _json_records(text, where) if json_lines else _csv_records(text, where)
    of_file, of_label, of_split = _roles(columns, where, labels=labels)
    root = Path(os.path.abspath(path.parent))
    problems: list[tuple[int, str]] = []
    rows = []
    for line, record in records:
        if isinstance(record, str):
            problems.append((line, record))
            continue
        file, label = _value(record.get(of_file)), _value(record.get(of_label)) if of_label else ""
        split = _value(record.get(of_split)) if of_split else ""
        problem = _problem(root, file, label if of_label else None, split if of_split else None)
        if problem is not None:
            problems.append((line, problem))
            continue
        inside = _inside(root, str(file))
        assert inside is not None, "or it is a problem"
        rows.append(Row(line, inside, str(label), _SPLIT_VALUES[str(split).lower()] if of_split else ""))
    if not rows and not problems:
        raise DataError(f"{where}: the table has no rows; a row per image is expected")
    return _check_rows(path, root, rows, problems, where)


def _text(path: Path, where: str) -> str:
    if not path.exists():
        raise DataError(f"{where}: no such file")
    try:
        content = read_bytes(path, _MOST_BYTES, failure=DataError)
    except DataError as error:
        raise DataError(f"{DATA_ROOT}: {error}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where}: line {line}: is not UTF-8; save the table as UTF-8") from None


_Records = list[tuple[int, dict[str, Any] | str]]
"""(line, values by column, or what is wrong with the line)."""


def _csv_records(text: str, where: str) -> tuple[list[str], _Records]:
    best: tuple[tuple[int, int], str, list[str]] | None = None
    for delimiter in _DELIMITERS:
        try:
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error as error:
            raise DataError(f"{where}: line 1: {error}") from None
        header = [name.strip() for name in header]
        fit = (sum(_known(name) in {*PATHS, *LABELS, *SPLITS} for name in header), len(header))
        if best is None or fit > best[0]:
            best = fit, delimiter, header
    assert best is not None
    _, delimiter, columns = best
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: _Records = []
    try:
        next(reader, None)
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(columns):
                records.append((reader.line_num, f"{len(fields)} fields, and {len(columns)} columns"))
            else:
                records.append((reader.line_num, dict(zip(columns, fields, strict=True))))
    except csv.Error as error:
        raise DataError(f"{where}: line {reader.line_num}: {error}") from None
    return columns, records


def _json_records(text: str, where: str) -> tuple[list[str], _Records]:
    records: _Records = []
    columns: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, "", failure=DataError)
        except DataError as error:
            why = str(error).removeprefix(": is damaged: ").removeprefix("is not valid JSON (")
            records.append((number, f"is no JSON: {why.removesuffix(', line 1)')}"))
            continue
        if not isinstance(record, dict):
            records.append(
                (number, 'is no JSON object; each line is one, such as {"path": ..., "label": ...}')
            )
            continue
        columns |= dict.fromkeys(record)
        records.append((number, record))
    if records and not columns:
        _refuse([(number, str(problem)) for number, problem in records], where)
    return list(columns), records


def _known(column: str) -> str:
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def _roles(columns: Sequence[str], where: str, *, labels: bool) -> tuple[str, str | None, str | None]:
    """Returns the columns of files, labels and splits."""
    listed = f"columns found: {', '.join(map(repr, columns)) if columns else 'none'}"
    filled = [name for name in columns if name]  # a spreadsheet may write more delimiters than names
    if len(set(filled)) < len(filled):
        raise DataError(f"{where}: two columns of the same name; {listed}")

    def column(names: Sequence[str], what: str, *, required: bool) -> str | None:
        fitting = [name for name in columns if _known(name) in names]
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


def _check_rows(
    path: Path, root: Path, rows: list[Row], problems: list[tuple[int, str]], where: str
) -> LabelTable:
    """Places the files, and finds missing ones and rows that repeat or contradict each other."""
    # The files of `labels.csv` beside `images/` are often named from there on.
    if not any(os.path.exists(root / row.file) for row in rows) and (root / IMAGES).is_dir():
        rows = [Row(row.line, os.path.join(IMAGES, row.file), row.label, row.split) for row in rows]
    folder = _Folder(root)
    first: dict[str, Row] = {}
    doubled: list[str] = []
    files: dict[str, ImageFile] = {}
    missing: dict[str, str] = {}
    for row in rows:
        before = first.setdefault(row.file, row)
        if before is row:
            file = folder.file(row.file)
            if isinstance(file, str):
                missing[row.file] = f"line {row.line}: {file}"
            else:
                files[row.file] = file
            continue
        for what, one, other in (("", before.label, row.label), ("split ", before.split, row.split)):
            if one != other:
                now, then = f"{what}{other!r}", f"{what}{one!r} in line {before.line}"
                problems.append((row.line, f"{row.file!r} is {now}, and {then}"))
                break
        else:
            doubled.append(f"{row.file} (lines {before.line} and {row.line})")
    _refuse(problems, where)
    warnings = []
    if doubled:
        count = "1 row repeats" if len(doubled) == 1 else f"{len(doubled)} rows repeat"
        more = f" and {len(doubled) - _LISTED} more" if len(doubled) > _LISTED else ""
        warnings.append(f"{path}: {count} a file, counted once: {', '.join(doubled[:_LISTED])}{more}")
    return LabelTable(path, root, list(first.values()), files, missing, warnings)


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


def _refuse(problems: Sequence[tuple[int, str]], where: str) -> None:
    """Raises one error about all problems (line, what is wrong), if there are any."""
    if not problems:
        return
    lines = [f"line {line}: {problem}" for line, problem in sorted(problems)]
    if len(lines) == 1:
        raise DataError(f"{where}: {lines[0]}")
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    raise DataError("\n  ".join([f"{where}: {len(lines)} problems", *lines[:_LISTED], *more]))


def rows_by_split(table: LabelTable) -> Iterator[tuple[str, list[Row]]]:
    """Yields the splits of a table with their rows; without a column of splits one, called train."""
    splits: dict[str, list[Row]] = {}
    for row in table.rows:
        splits.setdefault(row.split or "train", []).append(row)
    yield from splits.items()
