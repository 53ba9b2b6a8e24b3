"""Image sets listed in one CSV file: a column of image files, and either a column of labels or one
column per class.

    file,labels,split                 file,cat,dog,split
    a.jpg,cat;dog,train               a.jpg,1,1,train
    b.jpg,,test                       b.jpg,0,0,test

File names are relative to the folder of the table. The file is UTF-8, with or without a byte-order mark and with any
line ending. Fields are separated by commas, semicolons or tabs; the separator is detected from the header. The labels
in a field are separated by semicolons, or by ``|`` in a table whose fields are separated by semicolons. The values of
class columns are 1 (present) and 0 (absent). If any value is -1, they have the library's meaning: 1 present, 0 only
difficult objects, -1 absent.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast.data.base import FileDataset, OnError, Transform, check_distinct, read_all
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.labels.class_names import read_class_names

__all__ = ["LabelTable", "find_table", "list_splits", "read_table"]

_FILES, _LABELS, _SPLIT = ("file", "file_name", "filename", "image", "name", "path", "id"), "labels", "split"
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True)
class Table:
    """The content of a table: M file names, labels int8 [M, C], C class names, the split of each row (None without a
    column ``split``), the origin of the class names, and the last line number of each row in the file."""

    files: list[str]
    labels: Tensor
    class_names: list[str]
    splits: list[str] | None
    class_source: str
    lines: list[int]


class LabelTable(FileDataset):
    """The images of a table, or of one split of it.

    Args:
        path: the CSV file, or a folder with a file ``labels.csv``.
        split: use the rows with this value in the column ``split``; None: all rows.
        classes: C names in column order; None: the class columns in their order; in a table with a column ``labels``,
            the names in ``classes.txt`` beside the table (one name per line), or without that file all labels, sorted.
        on_error: what to do with missing and broken images, see FileDataset; a broken table is always an error.
        transform, seed: see MultiLabelDataset.

    Raises:
        FileNotFoundError: the table or an image does not exist; the message names the file and the line of the table.
        BrokenAnnotation: not UTF-8, a header without a column of files or labels, a row with another number of fields
            than the header, a file listed twice, an unknown class, or an invalid label value; the message names the
            table and the line.
        ValueError: no such split (the message lists the available ones), or ``classes`` differs from the table's
            columns.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        on_error: OnError = "raise",
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        source = find_table(path)
        table = read_table(source, classes=classes)
        rows = list(range(len(table.files)))
        if split is not None:
            rows = [row for row in rows if table.splits is not None and table.splits[row] == split]
            if not rows:
                available = ", ".join(sorted(set(table.splits or []))) or "none (the table has no column 'split')"
                raise ValueError(f"{source}: no split {split!r}; available splits: {available}")
        rows, skipped = read_all(rows, lambda row: _existing(source, table, row), on_error)
        self.class_source = table.class_source
        super().__init__(
            table.class_names,
            table.labels[rows],
            [table.files[row] for row in rows],
            [source.parent / table.files[row] for row in rows],
            skipped=skipped,
            on_error=on_error,
            transform=transform,
            seed=seed,
        )


def find_table(path: str | Path) -> Path:
    """The CSV file: ``path`` itself, or ``labels.csv`` in the folder ``path``.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    source = Path(path) / "labels.csv" if Path(path).is_dir() else Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such table of labels")
    return source


def list_splits(path: str | Path) -> list[str]:
    """The values of the column ``split``, sorted; an empty list without such a column.

    Raises:
        FileNotFoundError, BrokenAnnotation: see LabelTable.
    """
    source = find_table(path)
    header, rows, _, _ = _read(source)
    return sorted({row[header.index(_SPLIT)] for row in rows}) if _SPLIT in header else []


def read_table(path: str | Path, *, classes: Sequence[str] | None = None) -> Table:
    """Files, labels and splits of a table; images are not read and need not exist. Arguments and errors as for
    LabelTable."""
    source = find_table(path)
    header, rows, lines, delimiter = _read(source)
    files = [row[header.index(_file_column(header) or "")] for row in rows]
    _check_files(source, files, lines)
    splits = [row[header.index(_SPLIT)] for row in rows] if _SPLIT in header else None
    if classes is not None:
        check_distinct("classes", classes)
    if _LABELS in header:
        column, separator = header.index(_LABELS), "|" if delimiter == ";" else ";"
        sets = [[label.strip() for label in row[column].split(separator) if label.strip()] for row in rows]
        labels, names, origin = _from_sets(source, sets, lines, classes)
    else:
        labels, names, origin = _from_columns(source, header, rows, lines, classes)
    return Table(files, labels, names, splits, origin, lines)


def _read(path: Path) -> tuple[list[str], list[list[str]], list[int], str]:
    """The header, the rows (each as long as the header), the last line number of each row, and the delimiter."""
    # text and delimiter
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise BrokenAnnotation(f"{path}, line {line}: not UTF-8; save the table as UTF-8") from error
    first = text.split("\n", 1)[0].strip("\r")
    delimiter = next((each for each in _DELIMITERS if _file_column(_fields(first, each)) is not None), None)
    if delimiter is None:
        raise BrokenAnnotation(f"{path}: the first line must name a column {' or '.join(_FILES[:3])}, got {first!r}")
    header = _fields(first, delimiter)
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated or not all(header):
        raise BrokenAnnotation(f"{path}: columns must have distinct names, got {', '.join(map(repr, header))}")
    # rows; the first is the header again
    rows, lines = [], []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    for row in reader:
        if not any(field.strip() for field in row):
            continue
        if len(row) != len(header):
            raise BrokenAnnotation(f"{path}, line {reader.line_num}: {len(row)} fields, the header has {len(header)}")
        rows.append([field.strip() for field in row])
        lines.append(reader.line_num)
    if len(rows) < 2:
        raise BrokenAnnotation(f"{path}: the table has a header but no rows")
    return header, rows[1:], lines[1:], delimiter


def _fields(line: str, delimiter: str) -> list[str]:
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]


def _file_column(header: Sequence[str]) -> str | None:
    return next((name for name in header if name.lower() in _FILES), None)


def _check_files(path: Path, names: Sequence[str], lines: Sequence[int]) -> None:
    """Check that every row names a file and that no file is listed twice."""
    seen: dict[str, int] = {}
    for line, name in zip(lines, names, strict=True):
        if not name:
            raise BrokenAnnotation(f"{path}, line {line}: no file name")
        if name in seen:
            raise BrokenAnnotation(f"{path}, line {line}: {name} is listed twice, first in line {seen[name]}")
        seen[name] = line


def _from_sets(
    path: Path, sets: list[list[str]], lines: Sequence[int], classes: Sequence[str] | None
) -> tuple[Tensor, list[str], str]:
    """Labels [M, C], class names and their origin, from the column ``labels``."""
    beside = path.parent / "classes.txt"
    if classes is not None:
        names, origin = list(classes), "argument classes"
    elif beside.is_file():
        names, origin = read_class_names(beside), beside.name
    else:
        names, origin = sorted({label for labels in sets for label in labels}), f"names in {path.name}, sorted"
        check_distinct(f"the labels of {path}", names)
    place = {name: column for column, name in enumerate(names)}
    labels = np.full((len(sets), len(names)), -1, dtype=np.int8)
    for row, own in enumerate(sets):
        for label in own:
            if label not in place:
                near = difflib.get_close_matches(label, names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                where = f"{path}, line {lines[row]}"
                raise BrokenAnnotation(f"{where}: {label!r} is none of the {len(names)} classes{hint}")
            labels[row, place[label]] = 1
    return torch.from_numpy(labels), names, origin


def _from_columns(
    path: Path, header: list[str], rows: list[list[str]], lines: Sequence[int], classes: Sequence[str] | None
) -> tuple[Tensor, list[str], str]:
    """Labels [M, C], class names and their origin, from one column per class."""
    columns = [name for name in header if name not in (_file_column(header), _SPLIT)]
    if not columns:
        raise BrokenAnnotation(f"{path}: expected a column 'labels' or one column per class, got {', '.join(header)}")
    if classes is not None and set(classes) != set(columns):
        differing = sorted(set(classes) ^ set(columns))
        raise ValueError(
            f"classes must be the columns of {path} in any order; these names are in only one of the two: {differing}"
        )
    names = columns if classes is None else list(classes)
    values = np.empty((len(rows), len(names)), dtype=np.int8)
    for row, fields in enumerate(rows):
        for column, name in enumerate(names):
            text = fields[header.index(name)]
            if text not in ("1", "0", "-1"):
                raise BrokenAnnotation(f"{path}, line {lines[row]}: {name} must be 1, 0 or -1, got {text!r}")
            values[row, column] = int(text)
    if not (values == -1).any():  # 1 and 0 mean present and absent
        values = 2 * values - 1
    return torch.from_numpy(values), names, "argument classes" if classes is not None else f"columns of {path.name}"


def _existing(path: Path, table: Table, row: int) -> int:
    """The row, if its image file exists."""
    image = path.parent / table.files[row]
    if not image.is_file():
        raise FileNotFoundError(f"{image}: no such image, listed in {path}, line {table.lines[row]}")
    return row
