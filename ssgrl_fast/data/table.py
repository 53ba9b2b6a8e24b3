"""Image sets listed in one table, CSV or Parquet: a column of image files, and either a column of labels or one
column per class.

    file,labels,split                 file,cat,dog,split                file,label
    a.jpg,cat;dog,train               a.jpg,1,1,train                   a.jpg,cat
    b.jpg,,test                       b.jpg,0,0,test                    a.jpg,dog

File names are relative to the folder of the table, or to ``image_folder``; one without extension stands for the image
of that name there. Names of columns, split words and the forms that are read: :mod:`~ssgrl_fast.data.table_columns`,
:mod:`~ssgrl_fast.data.split_words`, :mod:`~ssgrl_fast.data.table_file`. The labels in a field are separated by
semicolons, ``|`` or, in quotes, commas, or are a JSON or Python list; :mod:`~ssgrl_fast.data.table_labels`. The values
of class columns are 1 and 0, True and False, yes and no, or empty; what -1 means must be said by a coding
(:mod:`~ssgrl_fast.labels.codings`). A table that can be read in several ways is refused by a message that names them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast.data.base import FileDataset, OnError, Transform, check_distinct, read_all
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.image_names import Borders, ImageNames
from ssgrl_fast.data.images import EXTENSIONS
from ssgrl_fast.data.split_words import choose_splits, matching_words, role_of
from ssgrl_fast.data.table_columns import Columns, file_column, find_columns
from ssgrl_fast.data.table_file import TableText, check_printable, read_text
from ssgrl_fast.data.table_format import PLAIN_TABLE, TableFormat
from ssgrl_fast.data.table_labels import columns_matrix, sets_matrix, split_cells
from ssgrl_fast.labels.class_names import read_class_names
from ssgrl_fast.labels.codings import read_coding

__all__ = ["LabelTable", "Table", "default_splits", "find_table", "list_splits", "read_table"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """The content of a table: M file names, labels int8 [M, C], C class names, the split of each row (None without a
    column of splits), the origin of the class names, and the last line number of each row in the file."""

    files: list[str]
    labels: Tensor
    class_names: list[str]
    splits: list[str] | None
    class_source: str
    lines: Sequence[int]
    path: Path = field(default_factory=Path)

    def place(self, row: int) -> str:
        """Opens a message about a row."""
        return f"{self.path}, {'row' if self.path.suffix.lower() == '.parquet' else 'line'} {self.lines[row]}"

    def rows_of(self, split: str | None) -> list[int]:
        """The rows of a split, by its word in any letters or known form; None: all rows.

        Raises:
            ValueError: no such split, or several words that the name may stand for; the message lists those there.
        """
        if split is None:
            return list(range(len(self.files)))
        there = set(self.splits or ())
        try:
            words = matching_words(there, split)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        if not words:
            available = ", ".join(sorted(there)) or "none (the table has no column 'split')"
            raise ValueError(f"{self.path}: no split {split!r}; available splits: {available}")
        return [row for row, word in enumerate(self.splits or ()) if word in words]


class LabelTable(FileDataset):
    """The images of a table, or of one split of it.

    Args:
        path: the table, CSV or .parquet, or a folder with a file ``labels.csv`` or ``labels.parquet``.
        split: use the rows of this split; compared without case and by known forms, several separated by commas. None:
            all rows.
        classes: C names in column order; None: the class columns in their order; in a table with a column of labels,
            the names in ``classes.txt`` beside the table (one name per line), or without that file all labels, sorted.
            Class columns that are not named are left out with a warning.
        form: separator, coding, negative word, and the columns of files and labels.
        image_folder: the folder that file names are relative to; None: that of the table.
        on_error: what to do with missing and broken images, see FileDataset; a broken table is always an error.
        transform, seed: see MultiLabelDataset.
        allow_outside: read images outside the folder of the table and ``image_folder`` too.
        more: ``max_pixels`` of FileDataset.

    Raises:
        OutsideRoot: the table names an image outside these folders, or a symbolic link leads there.
        FileNotFoundError: the table or an image does not exist; the message names the file and the line of the table.
        BrokenAnnotation: not UTF-8, a header without a column of files or labels, quotes that are not closed, control
            characters in names, a row with another number of fields than the header, a file listed twice, an unknown
            class, an invalid label value, or a table that can be read in several ways; the message names the table, the
            line and the option.
        ValueError: no such split (the message lists the available ones), or a name in ``classes`` that is no column.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        form: TableFormat = PLAIN_TABLE,
        image_folder: str | Path | None = None,
        on_error: OnError = "raise",
        transform: Transform | None = None,
        seed: int = 0,
        allow_outside: bool = False,
        **more: int,
    ) -> None:
        source = find_table(path)
        table = read_table(source, classes=classes, form=form)
        folder = source.parent if image_folder is None else Path(image_folder)
        names = ImageNames(folder, Borders(source.parent, folder, allow_outside=allow_outside))

        def existing(row: int) -> tuple[int, Path]:
            return row, names.find(table.files[row], table.place(row))

        found, skipped = read_all(table.rows_of(split), existing, on_error)
        rows = [row for row, _ in found]
        self.class_source = table.class_source
        super().__init__(
            table.class_names,
            table.labels[rows],
            [table.files[row] for row in rows],
            [place for _, place in found],
            skipped=skipped,
            on_error=on_error,
            transform=transform,
            seed=seed,
            **more,
        )


def find_table(path: str | Path) -> Path:
    """The table: ``path`` itself, or ``labels.csv`` or ``labels.parquet`` in the folder ``path``.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the folder has both.
    """
    source = Path(path) / "labels.csv" if Path(path).is_dir() else Path(path)
    if (other := Path(path) / "labels.parquet").is_file():
        if source.is_file():
            raise ValueError(f"{path}: labels.csv and labels.parquet may both be meant: keep one, or name it")
        source = other
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such table of labels")
    return source


def list_splits(path: str | Path, form: TableFormat = PLAIN_TABLE) -> list[str]:
    """The words in the column of splits, sorted; none without such a column. Arguments and errors as for LabelTable."""
    text = _text(find_table(path), form)
    split = find_columns(text, None, form).split
    return [] if split is None else sorted(set(text.column(split)))


def default_splits(
    path: str | Path,
    *,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    classes: Sequence[str] | None = None,
    form: TableFormat = PLAIN_TABLE,
) -> tuple[str | None, str | None]:
    """The names of a table's training and test split, see :func:`~ssgrl_fast.data.split_words.choose_splits`. Rows
    that are of no split (UNASSIGNED) are counted in the log.

    Raises:
        ValueError: words that are not known, or no rows for training; the message names the table and the option.
        FileNotFoundError, BrokenAnnotation: see LabelTable.
    """
    source = find_table(path)
    text = _text(source, form)
    column = find_columns(text, classes, form).split
    rows = Counter(() if column is None else text.column(column))
    try:
        chosen = choose_splits(sorted(rows), train=train, val=val, test=test)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    for word, count in rows.items():
        if role_of(word) == "none" and not any(word in matching_words(rows, name) for name in (*chosen, val) if name):
            _log.warning("%s: %d rows of %s are of no split and left out", source, count, word)
    return chosen


def read_table(path: str | Path, *, classes: Sequence[str] | None = None, form: TableFormat = PLAIN_TABLE) -> Table:
    """Files, labels and splits of a table; images are not read and need not exist. Arguments and errors as for
    LabelTable."""
    source = find_table(path)
    if classes is not None:
        check_distinct("classes", classes)
    text = _text(source, form)
    columns = find_columns(text, classes, form)
    first, images = _images(text, columns)
    splits = None if columns.split is None else text.column(columns.split)
    if columns.labels is not None:
        labels, names, origin = labels_from_sets(text, columns.labels, images, classes, form, len(first) < len(images))
    else:
        labels, names, origin = _from_columns(text, columns, classes, form)
    files = text.column(columns.files)
    if len(first) == len(files):
        return Table(files, torch.from_numpy(labels), names, splits, origin, text.lines, source)
    kept, lines = [files[row] for row in first], [text.lines[row] for row in first]
    if splits is not None:
        splits = _one_split_each(text, splits, first, images)
    return Table(kept, torch.from_numpy(labels), names, splits, origin, lines, source)


def _text(path: Path, form: TableFormat) -> TableText:
    return read_text(path, lambda header: file_column(header, form) is not None, form.image_column)


def _images(table: TableText, columns: Columns) -> tuple[Sequence[int], np.ndarray]:
    """The first row of every image, and the image of every row, int64."""
    files = table.column(columns.files)
    different = dict.fromkeys(files)
    if "" in different:
        raise BrokenAnnotation(f"{table.place(files.index(''))}: no file name")
    if not all(map(str.isprintable, different)):
        for name in different:
            check_printable(table.place(files.index(name)), "the file name", name)
    _check_spellings(table, files, different)
    if len(different) == len(files):
        return range(len(files)), np.arange(len(files))
    if not columns.repeated:
        seen: dict[str, int] = {}
        for row, name in enumerate(files):
            if name in seen:
                raise BrokenAnnotation(
                    f"{table.place(row)}: {name} is listed twice, first in {table.unit} {table.lines[seen[name]]} (a "
                    "table with one row for each image and label calls its column of labels 'label')"
                )
            seen[name] = row
    numbers = {name: number for number, name in enumerate(different)}
    images = np.fromiter(map(numbers.__getitem__, files), np.int64, len(files))
    return np.unique(images, return_index=True)[1].tolist(), images


def _check_spellings(table: TableText, files: Sequence[str], different: Iterable[str]) -> None:
    """Refuse two spellings of one image, such as "a" and "a.jpg" or "./a.jpg": they could be of different splits."""
    spelled = {name: os.path.normpath(name) for name in different if "./" in name or "//" in name}
    endings = {name.rpartition(".")[2] for name in different}  # few, so that most tables need no splitext of each name
    bare = set() if all(f".{ending.lower()}" in EXTENSIONS for ending in endings) else different
    bare = {name for name in bare if os.path.splitext(name)[1].lower() not in EXTENSIONS}
    first: dict[str, str] = {}
    for name in different if spelled or bare else ():
        place = spelled.get(name, name)
        stem, extension = os.path.splitext(place)
        if extension.lower() in EXTENSIONS and stem in bare:
            place = stem
        if (other := first.setdefault(place, name)) != name:
            here = table.place(files.index(name))
            raise BrokenAnnotation(f"{here}: {name} is the image {other} of an earlier {table.unit}")


def _one_split_each(table: TableText, splits: Sequence[str], first: Sequence[int], images: np.ndarray) -> list[str]:
    """The split of every image of several rows, which must agree."""
    own = [splits[row] for row in first]
    for row, image in enumerate(images.tolist()):
        if splits[row] != own[image]:
            raise BrokenAnnotation(
                f"{table.place(row)}: the image is of split {splits[row]!r} here and of {own[image]!r} in "
                f"{table.unit} {table.lines[first[image]]}"
            )
    return own


def labels_from_sets(
    table: TableText, column: str, images: np.ndarray, classes: Sequence[str] | None, form: TableFormat, one_each: bool
) -> tuple[np.ndarray, list[str], str]:
    """Labels [M, C], class names and their origin, from a column of labels; ``one_each``: images have several rows."""
    if form.coding is not None:
        raise ValueError(f"{table.path}: coding is for class columns; this table has a column of labels, {column!r}")
    beside = table.path.parent / "classes.txt"
    if classes is not None:
        known, origin = list(classes), "argument classes"
    elif beside.is_file():
        known, origin = read_class_names(beside), beside.name
    else:
        known, origin = None, f"names in {table.path.name}, sorted"
    negative = form.negative_word
    if known is not None and negative in known:
        raise ValueError(f"negative_word {negative!r} is one of the classes, {origin}")
    expected = known if known is None or negative is None else [*known, negative]
    found = split_cells(table, column, separator=form.separator, classes=expected, one_each=one_each)
    return (*sets_matrix(table, column, found, images, known, negative), origin)


def _from_columns(
    table: TableText, columns: Columns, classes: Sequence[str] | None, form: TableFormat
) -> tuple[np.ndarray, list[str], str]:
    """Labels [M, C], class names and their origin, from one column per class."""
    if form.separator is not None:
        raise ValueError(f"{table.path}: separator is for a column of labels; this table has one column per class")
    own, negative = list(columns.classes), form.negative_word
    if negative is not None:
        if negative not in own:
            raise ValueError(f"{table.path}: no column {negative!r}, the negative word; columns: {', '.join(own)}")
        own.remove(negative)
    if classes is not None and not set(classes) <= set(own):
        differing = sorted(set(classes) ^ set(own))
        raise ValueError(
            f"classes must be the columns of {table.path} in any order; these names are in only one of the two: "
            f"{differing}"
        )
    names = own if classes is None else list(classes)
    check_distinct(f"the columns of {table.path}", names)
    if left_out := [name for name in own if name not in set(names)]:
        warnings.warn(f"{table.path}: columns left out: {', '.join(left_out)}", stacklevel=4)
    coding = None if form.coding is None else read_coding(form.coding)
    read = names if negative is None else [*names, negative]
    labels = columns_matrix(table, read, coding)
    if negative is not None:
        both = np.flatnonzero((labels[:, -1] == 1) & (labels[:, :-1] == 1).any(1))
        if len(both):
            raise BrokenAnnotation(f"{table.place(int(both[0]))}: {negative!r} is present beside other classes")
        labels = np.ascontiguousarray(labels[:, :-1])
    return labels, names, "argument classes" if classes is not None else f"columns of {table.path.name}"
