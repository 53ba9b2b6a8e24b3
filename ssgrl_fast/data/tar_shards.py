"""Image sets in WebDataset shards: tar archives of images, with the labels beside each image or in a table.

    shards/train-00000.tar: a.jpg a.json b.jpg b.json …       shards/labels.parquet: file, labels (and perhaps split)
    shards/test-00000.tar: …

The headers of the shards are read once, for an index of where each image lies; an image is then read at its place. So
millions of images need no file each, and the set is sampled as any other: every image once per epoch, in an order that
depends on seed and epoch, and divided among processes (:mod:`~ssgrl_fast.data.sampler`).

The labels of ``a.jpg`` may lie beside it in one of these members (:mod:`~ssgrl_fast.data.shard_index` says what counts
for names with several dots):

- ``a.json``: a list of names, a name, or an object with a field "labels" of these;
- ``a.txt``: one name per line, or several names in the form of a table's field;
- ``a.cls``: class numbers, counted from 0.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
import torch

from ssgrl_fast._utils.checks import some
from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.data import table
from ssgrl_fast.data.base import FileDataset, OnError, Transform
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.image_names import row_of
from ssgrl_fast.data.options import ImageOptions
from ssgrl_fast.data.shard_index import ShardIndex, bytes_at, find_shards, folder_of
from ssgrl_fast.data.split_words import choose_splits, matching_words, role_of
from ssgrl_fast.data.table_file import TableText
from ssgrl_fast.data.table_format import PLAIN_TABLE, TableFormat
from ssgrl_fast.labels.class_names import read_class_names

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["TarShards", "default_splits", "list_splits"]

_log = logging.getLogger(__name__)
_NAMED = "name images there with their shard, as shard.tar/member"


class TarShards(FileDataset):
    """The images of shards, or of one split of them.

    Args:
        root: a folder, whose shards are ``*.tar`` in it and its subfolders; or one shard.
        split: if the table has a column of splits, the rows of this split; otherwise the shards whose names say so
            (:func:`default_splits`). None: all.
        classes: C names in column order; None: the names in ``classes.txt`` in the root, the class columns of the
            table, or all labels found, sorted.
        form: separator, coding, negative word, and the columns of the table; label_column also names the field of
            JSON objects.
        label_table: the table of labels (:mod:`~ssgrl_fast.data.table`). An image ``folder/shard.tar/member.jpg`` has
            the row whose name is the longest end of this path, with or without the image's extension. None:
            ``labels.parquet`` or ``labels.csv`` in the root; where there is none, the labels lie beside the images.
        label_member: extension of the labels beside the images; None: the only one there.
        on_error: "raise", or "skip" to leave out what is broken: members whose names lead out of the archive, links, a
            second image with the same name before its extension, labels or images that have no counterpart,
            labels that cannot be read, everything behind a damaged place, broken images (each is decoded once), and
            rows of the table without an image.
        transform, seed: see MultiLabelDataset.
        allow_outside: read shards outside the root too, where a symbolic link leads there.
        max_pixels: see FileDataset.

    Raises:
        OutsideRoot: a symbolic link leads out of the root.
        FileNotFoundError: no shard.
        BrokenAnnotation: what "skip" would leave out, an unknown class, a compressed shard, labels of several
            extensions, or a broken table; the message names shard and member, or table and row.
        ValueError: no such split; an address as root.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        form: TableFormat = PLAIN_TABLE,
        label_table: str | Path | None = None,
        label_member: str | None = None,
        on_error: OnError = "raise",
        transform: Transform | None = None,
        seed: int = 0,
        allow_outside: bool = False,
        max_pixels: int = ImageOptions.max_pixels,
    ) -> None:
        skipped: list[str] = []

        def refuse(message: str) -> None:
            if on_error == "raise":
                raise BrokenAnnotation(message)
            skipped.append(message)

        source, found = _find_table(root, label_table), find_shards(root, allow_outside)
        read = None if source is None else table.read_table(source, classes=classes, form=form)
        by_table, words = read is not None and read.splits is not None, set(found.values())
        chosen_words = words if split is None or by_table else matching_words(words, split)
        if not chosen_words:
            raise ValueError(f"{root}: no split {split!r}; splits by the names of shards: {', '.join(sorted(words))}")
        index, known = ShardIndex(refuse), _known(folder_of(root), classes)
        readers = {} if source is not None else _readers(known, form, label_member)
        for path, word in found.items():
            if word in chosen_words:
                index.add(path, path.relative_to(folder_of(root)).as_posix(), readers)
        if not index.names:
            raise ValueError(
                f"{root}: no image in {len(index.shards)} shards" + (f": {some(skipped)}" if skipped else "")
            )
        if read is None:
            rows, labels, names, origin = _beside(index, folder_of(root), classes, known, form, readers)
        else:
            chosen = read.rows_of(split if by_table else None)
            rows, matched = _by_table(index, read, chosen, complete=by_table or chosen_words == words)
            labels, names, origin = read.labels[matched], read.class_names, read.class_source
        self.class_source = origin
        self.shards, self.places = index.shards, np.array(index.places, dtype=np.int64).reshape(-1, 3)[rows]
        ids = [index.names[row] for row in rows]
        more: dict[str, Any] = {"skipped": skipped, "on_error": on_error, "max_pixels": max_pixels}
        super().__init__(names, labels, ids, ids, transform=transform, seed=seed, **more)

    def identity(self, index: int) -> tuple[object, ...]:
        """The shard, its size, time of change and inode, and the image's first byte and bytes."""
        shard, start, size = self.places[index].tolist()
        return *self.shards[shard], start, size

    def ends(self, index: int, count: int) -> tuple[int, bytes]:
        """As for FileDataset."""
        shard, start, size = self.places[index].tolist()
        rest = min(count, max(0, size - count))
        first = bytes_at(self.shards[shard], start, min(count, size))
        return size, first + bytes_at(self.shards[shard], start + size - rest, rest)

    def _read(self, index: int, side: int | None) -> Image:
        from ssgrl_fast.data.images import read_image

        shard, start, size = self.places[index].tolist()

        def opener() -> IO[bytes]:
            return io.BytesIO(bytes_at(self.shards[shard], start, size))

        return read_image(self.paths[index], side=side, max_pixels=self.max_pixels, opener=opener)

    def _select(self, indices: list[int]) -> None:
        super()._select(indices)
        self.places = self.places[indices]

    def joined(self, other: FileDataset) -> Self:
        """As for FileDataset."""
        assert isinstance(other, TarShards)
        union = super().joined(other)
        union.shards = self.shards + other.shards
        union.places = np.concatenate([self.places, other.places + [len(self.shards), 0, 0]])
        return union


def default_splits(
    root: str | Path,
    *,
    label_table: str | Path | None = None,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    classes: Sequence[str] | None = None,
    form: TableFormat = PLAIN_TABLE,
) -> tuple[str | None, str | None]:
    """The names of the training and test split: the words in the table's column of splits or, without one, those of the
    shards: their subfolder (``train/00000.tar``), or the known word in their name (``train-00000.tar``).

    Raises:
        ValueError: see :func:`~ssgrl_fast.data.split_words.choose_splits`.
        FileNotFoundError, BrokenAnnotation: see TarShards.
    """
    given = {"train": train, "val": val, "test": test}
    source = _find_table(root, label_table)
    if source is not None and table.list_splits(source, form):
        return table.default_splits(source, classes=classes, form=form, **given)
    try:
        return choose_splits(_words(root), **given)
    except ValueError as error:
        raise ValueError(f"{root}: {error}") from None


def list_splits(root: str | Path) -> list[str]:
    """The words of the splits, sorted; none where all images are of one. Errors as for :func:`default_splits`."""
    source = _find_table(root, None)
    return (source and table.list_splits(source)) or _words(root)


def _words(root: str | Path) -> list[str]:
    """The words in the names of shards."""
    words = sorted(set(find_shards(root, True).values()))
    return [] if len(words) == 1 and role_of(words[0]) is None else words


def _find_table(root: str | Path, named: str | Path | None) -> Path | None:
    if named is not None:
        return table.find_table(named)
    folder = folder_of(root)
    there = any((folder / name).is_file() for name in ("labels.csv", "labels.parquet"))
    return table.find_table(folder) if there else None


# ---- labels ----------------------------------------------------------------------------------------------------------


class _Members(TableText):
    """The labels beside images, in the form of a table of images and labels."""

    def place(self, row: int) -> str:
        return f"{self.path.parent}/{self.columns[0][row]}"


def _known(folder: Path, classes: Sequence[str] | None) -> list[str] | None:
    """The class names that are given or lie in the root."""
    beside = folder / "classes.txt"
    return list(classes) if classes is not None else read_class_names(beside) if beside.is_file() else None


def _readers(known: Sequence[str] | None, form: TableFormat, extension: str | None) -> dict[str, Callable[[str], str]]:
    """What reads labels beside images, by extension."""
    readers: dict[str, Callable[[str], str]] = {
        ".json": partial(_json, form.label_column or "labels"),
        ".txt": str.strip,
        ".cls": partial(_numbers, known or []),
    }
    return readers if extension is None else {f".{extension}": readers[f".{extension}"]}


def _beside(
    index: ShardIndex,
    folder: Path,
    classes: Sequence[str] | None,
    known: Sequence[str] | None,
    form: TableFormat,
    readers: Collection[str],
) -> tuple[list[int], torch.Tensor, list[str], str]:
    """Rows of the index, their labels [M, C], class names and their origin, from the labels beside the images."""
    if len(there := sorted(index.beside)) > 1:
        raise BrokenAnnotation(
            f"{folder}: beside images lie {' and '.join(there)}: name the labels by --data.label_member"
        )
    if not there:
        raise BrokenAnnotation(
            f"{folder}: no labels beside the images ({', '.join(readers)}), and no table labels.parquet or "
            "labels.csv; --data.label_table names one"
        )
    (kind,) = there
    if kind == ".cls" and known is None:
        raise BrokenAnnotation(f"{folder}: numbers of classes need names: --data.classes, or classes.txt in the root")
    rows, cells = [], []
    for row, name in enumerate(index.names):
        match index.beside[kind].get(row):
            case str(cell):
                rows.append(row)
                cells.append(cell)
            case None:
                index.refuse(f"{folder}/{name}: an image without labels")
            case error:
                index.refuse(f"{folder}/{name}: its labels, {kind}: {error}")
    if not rows:
        raise BrokenAnnotation(f"{folder}: no image with labels that can be read")
    if kind != ".txt" and form.separator is not None:
        raise ValueError(f"{folder}: --data.separator is for labels in .txt, these are in {kind}")
    if kind == ".txt" and form.separator is None and any("\n" in cell for cell in cells):
        form = replace(form, separator="\n")
        for row, cell in zip(rows, cells, strict=True):
            if known is None and "\n" not in cell and re.search(r"[,;|\t]", cell):
                raise BrokenAnnotation(
                    f"{folder}/{index.names[row]}: its labels, .txt, are {cell!r} in one line, and other images have a "
                    "line for each label; --data.separator or --data.classes says which is meant"
                )
    header = ["image", "labels"]
    text = _Members(
        folder / "*.tar", header, [[index.names[row] for row in rows], cells], range(len(rows)), ",", "image"
    )
    found = table.labels_from_sets(text, "labels", np.arange(len(rows)), classes, form, False)
    return rows, torch.from_numpy(found[0]), found[1], found[2]


def _json(field_name: str, text: str) -> str:
    value = parse_json(text)
    if isinstance(value, dict):
        if field_name not in value:
            raise ValueError(f"no field {field_name!r} (--data.label_column), there are {some(list(value))}")
        value = value[field_name]
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"expected a list of names, got {text[:100]!r}")
    return json.dumps(names, ensure_ascii=False)


def _numbers(names: Sequence[str], text: str) -> str:
    """The names of the classes with these numbers. A number too large becomes a name that is no class, which is refused
    later with the place of its image."""
    parts = [part for part in re.split(r"[\s,]+", text) if part]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"expected numbers of classes, got {text[:100]!r}")
    chosen = [names[int(part)] if int(part) < len(names) else f"class number {part}" for part in parts]
    return json.dumps(chosen, ensure_ascii=False)


def _by_table(
    index: ShardIndex, read: table.Table, chosen: Sequence[int], *, complete: bool
) -> tuple[list[int], list[int]]:
    """Pairs of an image of the index and a chosen row of the table, as two lists of numbers; ``complete``: every chosen
    row must have an image."""
    by_name = {name.removeprefix("./"): row for row, name in enumerate(read.files)}
    wanted, taken = set(chosen), dict[int, int]()
    for number, name in enumerate(index.names):
        row = row_of(name, by_name)
        if row is None:
            index.refuse(f"{name}: an image without a row in {read.path}")
        elif row in taken:
            index.refuse(f"{name}: has the row of {index.names[taken[row]]}, {read.place(row)}: {_NAMED}")
        elif row in wanted:
            taken[row] = number
    missing = wanted - set(taken)
    for row in sorted(missing) if complete else ():
        index.refuse(f"{read.place(row)}: {read.files[row]} is in none of the {len(index.shards)} shards")
    if missing and not complete:
        _log.info("%s: %d rows name no image in these shards", read.path, len(missing))
    pairs = sorted((number, row) for row, number in taken.items())
    return [number for number, _ in pairs], [row for _, row in pairs]
