"""Reads a table of image files and their labels: .csv or .tsv with a line of column names, or JSON lines.

A column is known by its name, in any case: the file (`PATHS`), the class (`LABELS`) and, where there is one,
the split (`SPLITS`). Other columns are passed over. A class named by a number stays a name. Delimiters are
the comma, the semicolon and the tab; the text is UTF-8, with or without a byte-order mark.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import io
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompress.data.decode import open_regular
from kdcompress.data.file_list import ImageFile
from kdcompress.data.folder_tree import DATA_ROOT, is_image
from kdcompress.data.image_files import quote_names
from kdcompress.documents import parse_json
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

_KNOWN = frozenset([*PATHS, *LABELS, *SPLITS])
_SPLIT_VALUES = {
    "train": "train", "training": "train", "val": "val", "valid": "valid", "validation": "validation",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
_MOST_BYTES = 1 << 31
"""A hundred bytes for each of twenty million images."""
_MOST_LINE = 1 << 20
"""Characters of a line."""
_MOST_PROBLEMS = 1000
"""A table with more wrong rows is not read to its end."""
_MOST_REPEATS = 100_000
"""Empty lines one after the other, and rows that repeat another: with more of either a table is damaged."""
_MOST_REPEATS_PER_FILE = 50
"""Rows that repeat another, where there are many files: a table may have a row per object in a picture."""
_MOST_MISSING = 100_000
"""Files at the beginning of a table of which not one is there."""
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
    problems = _Problems(where)
    with _open(path, where) as file:
        lines = _lines(file, where)
        json_lines = path.suffix.lower() in SUFFIXES[2:]
        columns, records = (
            _json_records(lines, problems) if json_lines else _csv_records(lines, where, problems)
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


class _Problems:
    """The wrong rows of a table, of which the first ones are kept.

    Args:
        where: Name of the table, for the message.
    """

    def __init__(self, where: str) -> None:
        self.where, self._first, self._count = where, list[tuple[int, str]](), 0

    def add(self, line: int, problem: str) -> None:
        """Adds a problem.

        Raises:
            DataError: There are `_MOST_PROBLEMS`.
        """
        self._count += 1
        if len(self._first) < _LISTED:
            self._first.append((line, problem))
        if self._count >= _MOST_PROBLEMS:
            self.refuse()

    def refuse(self) -> None:
        """Raises one error about all problems, if there are any."""
        if not self._count:
            return
        lines = [f"line {line}: {problem}" for line, problem in sorted(self._first)]
        if self._count == 1:
            raise DataError(f"{self.where}: {lines[0]}")
        number = f"{self._count} problems"
        if self._count >= _MOST_PROBLEMS:
            number = f"the first {number}; what comes after them was not read"
        more = [f"and {self._count - _LISTED} more"] if self._count > _LISTED else []
        raise DataError("\n  ".join([f"{self.where}: {number}", *lines, *more]))


class _Rows:
    """The rows of a table, each file once.

    Args:
        path: The table.
        problems: Receives the rows that contradict an earlier one.

    Attributes:
        first: Name of a file -> its first row.
    """

    def __init__(self, path: Path, problems: _Problems) -> None:
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
        if len(self._doubled) < _LISTED:
            self._doubled.append(f"{row.file} (lines {before.line} and {row.line})")
        if self._count > max(_MOST_REPEATS, _MOST_REPEATS_PER_FILE * len(self.first)):
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
        more = f" and {self._count - _LISTED} more" if self._count > _LISTED else ""
        return [f"{self.path}: {count} a file, counted once: {', '.join(self._doubled)}{more}"]


@contextlib.contextmanager
def _open(path: Path, where: str) -> Iterator[io.TextIOWrapper]:
    """Opens a table of bounded size as text."""
    if not path.exists():
        raise DataError(f"{where}: no such file")
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                raise DataError(
                    f"{where}: is larger than {_MOST_BYTES >> 20} MiB, so it is no table of labels"
                )
            try:
                yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            except UnicodeDecodeError:
                line = _line_of_other_text(path)
                raise DataError(f"{where}: line {line}: is not UTF-8; save the table as UTF-8") from None
    except OSError as error:
        reason = "it is no regular file" if error.errno == errno.EINVAL else error.strerror
        raise DataError(f"{where}: cannot be read: {reason}") from None


def _line_of_other_text(path: Path) -> int:
    """Returns the number of the first line that is not UTF-8."""
    decoder, number = codecs.getincrementaldecoder("utf-8")(), 1
    with open_regular(path) as file:
        while content := file.read(_MOST_LINE):
            try:
                decoder.decode(content)
            except UnicodeDecodeError as error:
                # What it has of the block before is less than a character, so it has no line in it.
                return number + error.object.count(b"\n", 0, error.start)
            number += content.count(b"\n")
    return number


def _lines(file: io.TextIOWrapper, where: str) -> Iterator[str]:
    """Yields the lines of a table with their ends; none is long, and not too many are empty."""
    number = empty = 0
    while line := file.readline(_MOST_LINE):
        number += 1
        if len(line) == _MOST_LINE and not line.endswith(("\n", "\r")):
            raise DataError(f"{where}: line {number}: is longer than {_MOST_LINE:,} characters")
        # Ends of \r\r\n, as Python writes on Windows without newline="", have an empty line after each row.
        empty = empty + 1 if line.isspace() else 0
        if empty > _MOST_REPEATS:
            raise DataError(
                f"{where}: line {number}: more than {_MOST_REPEATS:,} lines before it are empty; remove them"
            )
        yield line


_Records = Iterator[tuple[int, dict[str, Any]]]
"""(line, values by column)."""


def _csv_records(lines: Iterator[str], where: str, problems: _Problems) -> tuple[list[str], _Records]:
    best: tuple[tuple[int, int], str, list[str]] | None = None
    start: list[str] = []

    def kept_lines() -> Iterator[str]:
        for line in lines:
            start.append(line)
            yield line

    for delimiter in _DELIMITERS:
        try:
            header = next(csv.reader(itertools.chain(list(start), kept_lines()), delimiter=delimiter), [])
        except csv.Error as error:
            raise DataError(f"{where}: line 1: {error}") from None
        header = [name.strip() for name in header]
        fit = (sum(_known(name) in {*PATHS, *LABELS, *SPLITS} for name in header), len(header))
        if best is None or fit > best[0]:
            best = fit, delimiter, header
    assert best is not None
    _, delimiter, columns = best
    return columns, _csv_rows(itertools.chain(start, lines), delimiter, columns, problems)


def _csv_rows(lines: Iterable[str], delimiter: str, columns: list[str], problems: _Problems) -> _Records:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        next(reader, None)
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(columns):
                problems.add(reader.line_num, f"{len(fields)} fields, and {len(columns)} columns")
            else:
                yield reader.line_num, dict(zip(columns, fields, strict=True))
    except csv.Error as error:
        raise csv.Error(f"line {reader.line_num}: {error}") from None


def _json_records(lines: Iterator[str], problems: _Problems) -> tuple[list[str], _Records]:
    """Reads all lines, since any of them may name a column; of each the values of known columns stay."""
    records: list[tuple[int, dict[str, Any]]] = []
    columns: dict[str, None] = {}
    without_file = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line.rstrip("\r\n"), "", failure=DataError)
        except DataError as error:
            why = str(error).removeprefix(": is damaged: ").removeprefix("is not valid JSON (")
            problems.add(number, f"is no JSON: {why.removesuffix(', line 1)')}")
            continue
        if not isinstance(record, dict):
            problems.add(number, 'is no JSON object; each line is one, such as {"path": ..., "label": ...}')
            continue
        columns |= dict.fromkeys(record)
        known = {name: value for name, value in record.items() if _known(name) in _KNOWN}
        records.append((number, known))
        without_file += not any(_known(name) in PATHS for name in known)
        if without_file >= _MOST_PROBLEMS:
            break  # each of them is a wrong row, or there is no column of files at all
    if not columns:
        problems.refuse()
    return list(columns), iter(records)


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
