"""Labels of which most are unknown, held as the known ones alone: of 125,436 images and 9,605 classes of Open Images a
few million entries in place of 1.2 × 10⁹.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssgrl_fast._utils.checks import need, some
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.open_images import display_names
from ssgrl_fast.data.table import read_table
from ssgrl_fast.data.table_file import open_parquet
from ssgrl_fast.labels.matrix import ABSENT, DIFFICULT, PRESENT, UNKNOWN

__all__ = ["KnownLabels", "read_known_labels"]

_OPEN_IMAGES = ("ImageID", "LabelName", "Confidence")
_LONG = ("image", "class", "value")


@dataclass(frozen=True)
class KnownLabels:
    """The known labels of M images, sorted by image and class.

    Attributes:
        ids: M names.
        class_names: C names.
        starts: int64 [M + 1], where each image's entries begin among the K, and K.
        classes: int32 [K].
        codes: int8 [K], 1 present, 0 only difficult objects, -1 absent.
        left_out: a sentence about entries of other classes, or nothing.
    """

    ids: list[str]
    class_names: list[str]
    starts: np.ndarray
    classes: np.ndarray
    codes: np.ndarray
    left_out: str = ""

    def entries(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of images [m], which of them each known entry is of, and the entry's place among the K: int64 [k] each."""
        counts = self.starts[images + 1] - self.starts[images]
        rows = np.repeat(np.arange(len(images)), counts)
        first = np.repeat(self.starts[images] - (counts.cumsum() - counts), counts)
        return rows, first + np.arange(len(rows))

    def matrix(self, images: Sequence[int]) -> np.ndarray:
        """Codes int8 [m, C] of some images, -2 where unknown."""
        dense = np.full((len(images), len(self.class_names)), UNKNOWN, dtype=np.int8)
        rows, places = self.entries(np.asarray(images, dtype=np.int64))
        dense[rows, self.classes[places]] = self.codes[places]
        return dense


def read_known_labels(
    path: str | Path, class_names: Sequence[str], *, descriptions: str | Path | None = None, split: str | None = None
) -> KnownLabels:
    """The labels of a table.

    Args:
        path: a table with a row for each known label, in CSV or Parquet: the columns image, class, value (1 present,
            0 only difficult objects, -1 absent), or Open Images' ImageID, LabelName, Confidence (1 present, 0 absent);
            or a table as :class:`~ssgrl_fast.data.table.LabelTable` reads it.
        class_names: C names, the order of the result.
        descriptions: Open Images' table of label and display names; None: classes are called by LabelName.
        split: the rows of this split; of the second kind of table.

    Raises:
        FileNotFoundError, ValueError: see LabelTable.
        BrokenAnnotation: other columns or values, a label that is stated twice in different ways, or no label of these
            classes; the message names the table.
    """
    source = Path(path)
    parquet = source.suffix.lower() == ".parquet"
    header = _parquet_columns(source) if parquet else _csv_columns(source)
    columns = next((names for names in (_OPEN_IMAGES, _LONG) if set(names) <= set(header)), None)
    if columns is not None:
        if split is not None:
            raise ValueError(f"{path}: a table with a row for each label has no column of splits, got {split!r}")
        return _from_rows(source, columns, parquet, class_names, descriptions)
    table = read_table(source, classes=class_names)
    chosen = table.rows_of(split)
    dense = table.labels[chosen].numpy()
    rows, classes = np.nonzero(dense != UNKNOWN)
    starts = np.concatenate([[0], np.bincount(rows, minlength=len(dense)).cumsum()])
    ids = [table.files[row] for row in chosen]
    return KnownLabels(ids, list(class_names), starts, classes.astype(np.int32), dense[rows, classes])


def _parquet_columns(path: Path) -> list[str]:
    with open_parquet(path) as file:
        return list(file.schema_arrow.names)


def _csv_columns(path: Path) -> list[str]:
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file), [])


def _read_rows(path: Path, columns: tuple[str, str, str], parquet: bool) -> Any:
    """Image and class as dictionaries of text, and value."""
    arrow = need("pyarrow", "train", "labels")
    if parquet:
        with open_parquet(path) as file:
            table = file.read(list(columns))
    else:
        text = need("pyarrow.csv", "train", "labels")
        kinds = {columns[0]: arrow.string(), columns[1]: arrow.string(), columns[2]: arrow.float64()}
        kinds |= {name: arrow.dictionary(arrow.int32(), arrow.string()) for name in columns[:2]}
        options = text.ConvertOptions(include_columns=list(columns), column_types=kinds)
        try:
            table = text.read_csv(path, convert_options=options)
        except (arrow.ArrowInvalid, arrow.ArrowKeyError) as error:
            raise BrokenAnnotation(f"{path}: {error}") from error
    return [_whole(table[name], name in columns[:2]) for name in columns]


def _whole(column: Any, coded: bool) -> Any:
    arrow = need("pyarrow", "train", "labels")
    if coded and not arrow.types.is_dictionary(column.type):
        column = column.cast(arrow.string()).dictionary_encode()
    return (column.unify_dictionaries() if coded else column).combine_chunks()


def _from_rows(
    path: Path,
    columns: tuple[str, str, str],
    parquet: bool,
    class_names: Sequence[str],
    descriptions: str | Path | None,
) -> KnownLabels:
    images, labels, values = _read_rows(path, columns, parquet)
    empty = "" in images.dictionary.to_pylist() or "" in labels.dictionary.to_pylist()
    if empty or images.null_count or labels.null_count or values.null_count:
        raise BrokenAnnotation(f"{path}: rows with an empty {' or '.join(columns)}")
    codes = _codes(path, columns, values.to_numpy(zero_copy_only=False))
    shown = labels.dictionary.to_pylist()
    if descriptions is not None:
        known = display_names(Path(descriptions))
        shown = [known.get(label, label) for label in shown]
    place = {name: number for number, name in enumerate(class_names)}
    classes = np.array([place.get(name, -1) for name in shown], dtype=np.int32)[labels.indices.to_numpy()]
    kept = np.flatnonzero(classes >= 0)
    others = [name for name in shown if name not in place]
    if not len(kept):
        raise BrokenAnnotation(f"{path}: no label of the model's classes; its classes are {some(others)}")
    left_out = f"{len(classes) - len(kept)} labels of {len(others)} classes: {some(others)}" if others else ""
    numbers, rows = np.unique(images.indices.to_numpy()[kept], return_inverse=True)
    names = images.dictionary.take(need("pyarrow", "train", "labels").array(numbers)).to_pylist()
    key = rows.astype(np.int64) * len(class_names) + classes[kept]
    order = np.argsort(key, kind="stable")
    key, codes = key[order], codes[kept][order]
    again = np.flatnonzero(key[1:] == key[:-1])
    if len(wrong := again[codes[again] != codes[again + 1]]):
        image, number = divmod(int(key[wrong[0]]), len(class_names))
        raise BrokenAnnotation(
            f"{path}: {class_names[number]!r} of {names[image]} is stated in two ways: "
            f"{codes[wrong[0]]} and {codes[wrong[0] + 1]}"
        )
    key, codes = np.delete(key, again), np.delete(codes, again)
    starts = np.searchsorted(key, np.arange(len(names) + 1) * len(class_names))
    return KnownLabels(names, list(class_names), starts, (key % len(class_names)).astype(np.int32), codes, left_out)


def _codes(path: Path, columns: tuple[str, str, str], values: np.ndarray) -> np.ndarray:
    meanings = {1: PRESENT, 0: ABSENT} if columns == _OPEN_IMAGES else {1: PRESENT, 0: DIFFICULT, -1: ABSENT}
    if len(wrong := np.flatnonzero(~np.isin(values, list(meanings)))):
        expected = " or ".join(map(str, meanings))
        raise BrokenAnnotation(f"{path}: {columns[2]} must be {expected}, got {values[wrong[0]]} in row {wrong[0] + 1}")
    codes = np.empty(len(values), dtype=np.int8)
    for value, code in meanings.items():
        codes[values == value] = code
    return codes
