"""Reads the rows of a table of labels as text: .csv, .tsv or JSON lines, of bounded size and damage."""

from __future__ import annotations

import codecs
import contextlib
import csv
import errno
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kdcompress.data.decode import open_regular
from kdcompress.documents import parse_json
from kdcompress.errors import DataError

PATHS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "img", "image_path",
    "img_path", "image_file", "image_name", "image_filename", "relative_path",
)  # fmt: skip
LABELS = (
    "label", "class", "category", "target", "labels", "class_name", "classname", "class_label", "label_name",
    "category_name", "ground_truth",
)  # fmt: skip
SPLITS = ("split", "subset", "set", "partition")
"""Names of the columns of files, labels and splits, as `column_name` writes them."""

_KNOWN = frozenset([*PATHS, *LABELS, *SPLITS])
_MOST_BYTES = 1 << 31
"""A hundred bytes for each of twenty million images."""
_MOST_LINE = 1 << 20
"""Characters of a line."""
_MOST_PROBLEMS = 1000
"""A table with more wrong rows is not read to its end."""
MOST_REPEATS = 100_000
"""Empty lines one after the other, and rows that repeat another: with more of either a table is damaged."""
_DELIMITERS = (",", ";", "\t")
LISTED = 5  # problems listed in one message


class Problems:
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
        if len(self._first) < LISTED:
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
        more = [f"and {self._count - LISTED} more"] if self._count > LISTED else []
        raise DataError("\n  ".join([f"{self.where}: {number}", *lines, *more]))


@contextlib.contextmanager
def open_table(path: Path, where: str) -> Iterator[io.TextIOWrapper]:
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


def lines_of(file: io.TextIOWrapper, where: str) -> Iterator[str]:
    """Yields the lines of a table with their ends; none is long, and not too many are empty."""
    number = empty = 0
    while line := file.readline(_MOST_LINE):
        number += 1
        if len(line) == _MOST_LINE and not line.endswith(("\n", "\r")):
            raise DataError(f"{where}: line {number}: is longer than {_MOST_LINE:,} characters")
        # Ends of \r\r\n, as Python writes on Windows without newline="", have an empty line after each row.
        empty = empty + 1 if line.isspace() else 0
        if empty > MOST_REPEATS:
            raise DataError(
                f"{where}: line {number}: more than {MOST_REPEATS:,} lines before it are empty; remove them"
            )
        yield line


Records = Iterator[tuple[int, dict[str, Any]]]
"""(line, values by column)."""


def csv_records(lines: Iterator[str], where: str, problems: Problems) -> tuple[list[str], Records]:
    """Reads the columns of a table with delimiters, and yields its rows.

    Args:
        lines: From `lines_of`.
        where: Name of the table, for messages.
        problems: Receives the rows of another number of fields.

    Raises:
        DataError: The first line is damaged.
        csv.Error: A later one is, while the rows are read.
    """
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
        fit = (sum(column_name(name) in {*PATHS, *LABELS, *SPLITS} for name in header), len(header))
        if best is None or fit > best[0]:
            best = fit, delimiter, header
    assert best is not None
    _, delimiter, columns = best
    return columns, _csv_rows(itertools.chain(start, lines), delimiter, columns, problems)


def _csv_rows(lines: Iterable[str], delimiter: str, columns: list[str], problems: Problems) -> Records:
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


def json_records(lines: Iterator[str], problems: Problems) -> tuple[list[str], Records]:
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
        known = {name: value for name, value in record.items() if column_name(name) in _KNOWN}
        records.append((number, known))
        without_file += not any(column_name(name) in PATHS for name in known)
        if without_file >= _MOST_PROBLEMS:
            break  # each of them is a wrong row, or there is no column of files at all
    if not columns:
        problems.refuse()
    return list(columns), iter(records)


def column_name(column: str) -> str:
    """Returns a column's name as it is compared: in lower case, with underscores."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")
