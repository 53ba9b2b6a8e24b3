"""Which column of a table is which: files, labels, split, or one column per class.

Names are compared without case, blanks and punctuation: "Image Index", "image_index" and "ImageIndex" are one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.split_words import role_in, role_of
from ssgrl_fast.data.table_file import TableText
from ssgrl_fast.data.table_format import PLAIN_TABLE, TableFormat
from ssgrl_fast.labels.codings import sign_of

__all__ = ["Columns", "file_column", "find_columns"]

FILES = (
    *("file", "filename", "filepath", "imagefile", "imagefilename", "imagefilepath", "imagename", "imagepath"),
    *("imageindex", "imageid", "image", "img", "imgname", "imgfile", "imgpath", "imgid"),
    *("fname", "fpath", "files", "filenames", "images", "uri", "imageuri", "imageurl", "imgurl"),
    *("path", "url", "name", "id"),
)
"""Columns of files; of several the first of this list is taken."""
LABELS = ("labels", "tags", "findinglabels", "imagelabels", "classes", "categories")
"""Columns that hold all labels of an image."""
LABEL = ("label", "tag", "labelname", "class", "classname", "category", "categoryname", "findinglabel")
"""Columns that may hold one label of several, in a table with one row for each image and label."""
SPLITS = ("split", "mluse", "partition", "subset", "set", "fold")
_SPLIT_LIKE = re.compile(
    r"(is|in|for|use)(train|training|val|valid|validation|test|testing|holdout)(set|split)?|usage|phase|"
    r"(train|training|val|valid|validation|test|testing|holdout)(set|split|fold|flag|mask)|"
    r"((k|cv)?folds?|(data|dataset|traintest)?splits?)(id|no|nr|num|number|index)?"
)
"""Keys of columns that may say how a set is divided, in a form that is not read (fastai's is_valid, FER's Usage)."""
_CONFIDENCE = (
    *("confidence", "score", "prob", "probability", "value", "present", "presence", "exists", "verified", "state"),
    *("ispresent", "isverified", "labelvalue", "polarity"),
)


@dataclass(frozen=True)
class Columns:
    """The columns of a table by their use.

    Attributes:
        files: the column of files.
        labels: the column of labels; None in a table with one column per class.
        repeated: whether a file may stand in several rows, one for each of its labels.
        split: the column of the splits, or None.
        classes: the columns that are classes; empty in a table with a column of labels.
    """

    files: str
    labels: str | None
    repeated: bool
    split: str | None
    classes: list[str]


def file_column(header: Sequence[str], form: TableFormat = PLAIN_TABLE) -> str | None:
    """The column of files, or None."""
    by_key = {_key(name): name for name in reversed(header)}
    if form.image_column is not None:
        return form.image_column if form.image_column in header else by_key.get(_key(form.image_column))
    return next((by_key[key] for key in FILES if key in by_key), None)


def find_columns(table: TableText, classes: Sequence[str] | None = None, form: TableFormat = PLAIN_TABLE) -> Columns:
    """The columns of a table by their use.

    Args:
        table: a table with a column of files.
        classes: class names that the user gave; where all are columns, these are the classes.
        form: the columns that the user named.

    Raises:
        BrokenAnnotation: no column of a name that was given, no column of labels and none of classes, several that may
            be the labels or the split, split words in a column of another name, or a column that says how sure each
            label is.
    """
    files, given = file_column(table.header, form), set(classes or ())
    if form.label_column is not None or not given <= set(table.header):  # a class may be called like another column
        given = set()
    assert files is not None  # read_text has looked
    rest = [name for name in table.header if name != files and name not in given]
    split = _split_column(table, rest, form.split_column)
    rest = [name for name in rest if name != split]
    labels = _labels_column(table, rest, form.label_column) if not given else None
    if split is None and form.split_column is None:
        _check_missed_split(table, [name for name in rest if name != labels], labels is not None)
    if labels is None:
        own = [name for name in table.header if name not in (files, split)]
        if not own:
            listed = ", ".join(table.header)
            raise BrokenAnnotation(
                f"{table.path}: expected a column 'labels' or one column per class, got {listed} (known as well: tags, "
                "Finding Labels, label, class, category … in any letters; --data.label_column names another)"
            )
        return Columns(files, None, False, split, own)
    for name in rest:
        if _key(name) in _CONFIDENCE and any(sign_of(cell) != "1" for cell in table.column(name)):
            row = next(row for row, cell in enumerate(table.column(name)) if sign_of(cell) != "1")
            raise BrokenAnnotation(
                f"{table.place(row)}: {name} {table.column(name)[row]!r} beside the label "
                f"{table.column(labels)[row]!r}: a row of this table need not say that the label is present; "
                "--data.kind openimages reads those of Open Images, other tables must hold present labels alone"
            )
    return Columns(files, labels, not holds_several(labels), split, [])


def holds_several(name: str) -> bool:
    """Whether a column of this name holds all labels of an image."""
    return _key(name) in LABELS


def _key(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _named_column(table: TableText, names: Sequence[str], named: str, what: str) -> str:
    """The column that the user named, by the same letters or else without case, blanks and punctuation."""
    fitting = [name for name in names if name == named] or [name for name in names if _key(name) == _key(named)]
    if len(fitting) != 1:
        raise BrokenAnnotation(f"{table.path}: no column {named!r} for the {what}; columns: {', '.join(names)}")
    return fitting[0]


def _split_column(table: TableText, names: Sequence[str], named: str | None) -> str | None:
    """The column of splits, by the name that the user gave ("" for none) or a known one; None where there is none."""
    if named == "":
        return None
    found = {key: name for key in SPLITS for name in names if _key(name) == key}
    if named is not None:
        found = {"split": _named_column(table, names, named, "splits")}
    if len(found) > 1 and "split" not in found:
        raise BrokenAnnotation(
            f"{table.path}: the columns {' and '.join(map(repr, found.values()))} may both name the split; give "
            "--data.split_column (graph: --split-column)"
        )
    name = found.get("split") or next(iter(found.values()), None)
    if name is not None and "" in table.column(name):
        raise BrokenAnnotation(f"{table.place(table.column(name).index(''))}: no split in column {name!r}")
    return name


def _labels_column(table: TableText, names: Sequence[str], named: str | None) -> str | None:
    """The column of labels, by the name that the user gave or a known one; None where there is one column per class."""
    if named is not None:
        return _named_column(table, names, named, "labels")
    found = [name for kind in (LABELS, LABEL) for key in kind for name in names if _key(name) == key]
    if not found:
        return None
    plain = [name for name in found if _key(name) == "labels"]
    if len(found) > 1 and len(plain) != 1:
        raise BrokenAnnotation(
            f"{table.path}: the columns {' and '.join(map(repr, found))} may both hold the labels; give "
            "--data.label_column (graph: --label-column)"
        )
    name = plain[0] if plain else found[0]
    signs = {sign_of(cell) for cell in set(table.column(name))}
    if _key(name) != "labels" and None not in signs and signs != {"empty"}:
        raise BrokenAnnotation(
            f"{table.path}: column {name!r} holds values of class columns alone, such as 1 and 0: if it is a class, "
            f"give --data.classes '[{name}]'; if they are names of classes, call the column 'labels'"
        )
    return name


def _check_missed_split(table: TableText, names: Sequence[str], beside_labels: bool) -> None:
    """Refuse a column that looks like the split by its words or its name, and is not called so. A column "train" beside
    other classes is the vehicle; beside a column of labels it is none."""
    for name in names:
        words, key = set(table.column(name)), _key(name)
        roles = {role_of(word) for word in words}
        told = len(words) <= 20 and {"train"} < {role_in(word) for word in words}  # coco_train2017 beside coco_val2017
        called = _SPLIT_LIKE.fullmatch(key) or (beside_labels and role_of(key) is not None)
        if None not in roles or told or called or {"train", "test"} <= roles:
            raise BrokenAnnotation(
                f"{table.path}: column {name!r} may divide the images, its words are {', '.join(sorted(words)[:5])}; "
                f"if so, give --data.split_column '{name}' (graph: --split-column) and name its words with "
                "--data.train_split and --data.test_split (graph: --split); if not, --data.split_column ''"
            )
