"""The labels in a table's cells: separators, list literals, classes that are found, and one column per class."""

from __future__ import annotations

import ast
import difflib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np

from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.data.base import check_distinct
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.table_columns import holds_several
from ssgrl_fast.data.table_file import TableText, check_printable
from ssgrl_fast.labels.codings import Coding, coding_for, sign_of
from ssgrl_fast.labels.matrix import ABSENT, PRESENT, alike_names

__all__ = ["columns_matrix", "sets_matrix", "split_cells"]

SEPARATORS = (";", "|", ",", "；", "、", "，", "｜")  # those of Chinese and Japanese tables too
_SIGNS = ("/", "+", "&", ":", "#", "~", "\\", "*", "^", "\n", "<br>")  # that may join labels, and are rare in names
_JOINS = (*SEPARATORS, " ", *_SIGNS, "_", "-", ".")
_NONE_WORDS = frozenset(("no finding", "no findings", "none", "nothing", "no label", "no labels", "nan", "null", "n/a"))
_ITEM = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[+-]?\d+)"""
_LITERAL = re.compile(rf"[\[({{]\s*(?:{_ITEM}\s*(?:,\s*{_ITEM}\s*)*,?\s*)?[\])}}]", re.DOTALL)
_ITEMS = re.compile(_ITEM, re.DOTALL)

Labels = tuple[str, ...]


def split_cells(
    table: TableText, column: str, *, separator: str | None, classes: Sequence[str] | None, one_each: bool = False
) -> dict[str, Labels]:
    """The labels of every different cell of a column.

    Args:
        table: the table.
        column: its name.
        separator: between labels, " " for blanks; None: list literals (Python or JSON) where all cells are some,
            else one of ``; | ,`` and their full-width forms, the one that occurs or under which all labels are known
            classes.
        classes: the known classes; None: every label that occurs is one.
        one_each: whether the table has a row for each image and label, so that a cell should hold one.

    Raises:
        BrokenAnnotation: several separators occur, or one where a cell should hold one label, literals beside other
            cells, or a class that is found holds a separator, brackets, quotes, control characters or other classes;
            the message names line and option.
    """
    cells = list(dict.fromkeys(table.column(column)))
    if separator is not None:
        if not separator:
            raise ValueError("separator must be at least one character, got ''")
        found = _all_parts(cells, separator)
    elif any(cell for cell in cells) and all(_LITERAL.fullmatch(cell) for cell in cells if cell):
        found = {cell: _items(table, column, cell) for cell in cells}
    else:
        found = (
            _by_known(table, column, cells, classes)
            if classes is not None
            else _by_occurrence(table, column, cells, one_each)
        )
    if classes is None:
        _check_found(table, column, found, separator, holds_several(column) and not one_each)
    return found


def _parts(cell: str, separator: str) -> Labels:
    return tuple(filter(None, map(str.strip, cell.split(separator))))


class _Stripped(dict[str, str]):
    """Texts without blanks around them, each stripped once."""

    def __missing__(self, text: str) -> str:
        self[text] = text.strip()
        return self[text]


def _all_parts(cells: Iterable[str], separator: str) -> dict[str, Labels]:
    """The labels of many cells, which share most of them."""
    label = _Stripped().__getitem__
    return {
        cell: labels if "" not in (labels := tuple(map(label, cell.split(separator)))) else tuple(filter(None, labels))
        for cell in cells
    }


def _items(table: TableText, column: str, cell: str) -> Labels:
    """The items of a list literal, which are texts or whole numbers."""
    if not cell:
        return ()
    try:
        items = parse_json(cell)
        if isinstance(items, list):
            return tuple(label for label in (str(item).strip() for item in items) if label)
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of Python's parser: an escape that is none
            items = [ast.literal_eval(item) for item in _ITEMS.findall(cell)]
    except (SyntaxError, ValueError, Warning) as error:
        raise BrokenAnnotation(f"{_line_of(table, column, cell)}: {cell!r} is no list of names: {error}") from error
    return tuple(label for label in (str(item).strip() for item in items) if label)


def _by_known(table: TableText, column: str, cells: Sequence[str], classes: Sequence[str]) -> dict[str, Labels]:
    """Labels by the separator under which all are known classes."""
    known = set(classes)
    occurring = [separator for separator in SEPARATORS if any(separator in cell for cell in cells)]
    others = [separator for separator in SEPARATORS if separator not in occurring]
    fitting: list[dict[str, Labels]] = []
    for separator in (*occurring, *others[:1]):  # one that does not occur: every cell is one label
        found = _all_parts(cells, separator)
        if all(map(known.issuperset, found.values())):
            fitting.append(found)
    for cell in cells if len(fitting) > 1 else ():
        if len({found[cell] for found in fitting}) > 1:
            raise BrokenAnnotation(
                f"{_line_of(table, column, cell)}: {cell!r} can be read in several ways with the classes that are "
                f"known; {_option(';')}"
            )
    if fitting:
        return fitting[0]
    usual = "|" if table.delimiter == ";" else ";"
    return _all_parts(cells, occurring[0] if len(occurring) == 1 else usual)


def _by_occurrence(table: TableText, column: str, cells: Sequence[str], one_each: bool) -> dict[str, Labels]:
    """Labels by the one separator that occurs; refused where a cell should hold one label."""
    examples = {separator: next((cell for cell in cells if separator in cell), None) for separator in SEPARATORS}
    occurring = {separator: cell for separator, cell in examples.items() if cell is not None}
    if len(occurring) > 1:
        shown = "; ".join(f"{_line_of(table, column, cell)}: {cell!r}" for cell in occurring.values())
        listed = " and ".join(map(repr, occurring))
        raise BrokenAnnotation(f"{shown}: {listed} may both separate labels; {_option(next(iter(occurring)))}")
    for separator, cell in occurring.items() if one_each else ():
        none = next(sign for sign in SEPARATORS if sign not in occurring)
        raise BrokenAnnotation(
            f"{_line_of(table, column, cell)}: {cell!r} in a table with a row for each image and label: give "
            f"--data.separator '{none}' (graph: --separator) if it is one label, '{separator}' if it is several"
        )
    return _all_parts(cells, next(iter(occurring), ";"))


def _option(separator: str) -> str:
    return (
        f"give --data.separator '{separator}' (graph: --separator), or the classes, --data.classes or classes.txt "
        "beside the table"
    )


def _line_of(table: TableText, column: str, cell: str) -> str:
    return table.place(table.column(column).index(cell))


def _check_found(
    table: TableText, column: str, found: Mapping[str, Labels], separator: str | None, several: bool
) -> None:
    """Refuse classes that were found and cannot be meant; ``several``: a cell should hold all labels of an image."""
    first: dict[str, str] = {}
    seen: set[str] = set()
    for cell, labels in found.items():
        if not seen.issuperset(labels):
            first.update((label, cell) for label in labels if label not in seen)
            seen.update(labels)
    together = set(chain.from_iterable(labels for labels in found.values() if len(labels) > 1))
    for label, cell in first.items():
        if label.isalnum():  # the common case
            continue
        try:
            check_printable("", "label", label)
        except BrokenAnnotation as error:
            raise BrokenAnnotation(f"{_line_of(table, column, cell)}{error}") from None
        if set(label) & set("[]{}") or (len(label) > 1 and label[0] == label[-1] and label[0] in "'\""):
            raise BrokenAnnotation(
                f"{_line_of(table, column, cell)}: the label {label!r} holds brackets or quotation marks; lists must "
                f"be JSON or Python literals in every cell; otherwise {_option(';')}"
            )
    if separator is None:
        _check_joins(table, column, first, together)
        for join in (" ", *_SIGNS) if several and not together else ():  # nothing separates labels: perhaps these do
            _check_chains(table, column, first, join)


def _check_joins(table: TableText, column: str, first: Mapping[str, str], together: set[str]) -> None:
    """Refuse classes that are several others joined by a sign that was not taken for a separator."""
    names = set(first)
    sets: dict[frozenset[str], str] = {}
    for label in first:
        words = label.split()
        joined = next(
            (join for join in _JOINS if len(parts := _parts(label, join)) > 1 and names.issuperset(parts)), None
        )
        inner = label not in together and len(words) > 2 and any(word in names for word in words)
        if joined is None and inner:
            joined = " "
        if joined is not None:
            raise _joined(table, column, first[label], label, joined)
        if label not in together and len(words) > 1:
            sets.setdefault(frozenset(words), label)
            if sets[frozenset(words)] != label:
                raise _joined(table, column, first[label], label, " ")
    for shorter, label in _subsets(sets):
        raise _joined(table, column, first[label], label, " ", f"is {' '.join(sorted(shorter))!r} and more")


def _check_chains(table: TableText, column: str, first: Mapping[str, str], join: str) -> None:
    """Refuse labels such as "cat dog" and "dog bird", in which a word stands at different places. A class of one word
    counts for signs alone ("rust" beside "scab/rust"): names as "dog bed" beside "bed" are usual."""
    places: dict[str, tuple[int, str]] = {}
    if not any(join in label for label in first):
        return
    for label in first:
        words = _parts(label, join)
        for place, word in enumerate(words) if len(words) > 1 or join != " " else ():
            earlier, other = places.setdefault(word, (place, label))
            if earlier != place and other != label:
                joined = label if join in label else other
                what = f"shares {word!r} with {other if joined == label else label!r}, at another place"
                raise _joined(table, column, first[joined], joined, join, what)


def _subsets(sets: Mapping[frozenset[str], str]) -> Iterable[tuple[frozenset[str], str]]:
    """Names of at least two words whose words are all in another, longer name: (words of the shorter, the longer)."""
    holding: dict[str, list[frozenset[str]]] = {}
    for words in sets:
        for word in words:
            holding.setdefault(word, []).append(words)
    for words in sets:
        rarest = min((holding[word] for word in words), key=len)
        for longer in rarest[:1000]:
            if words < longer:
                yield words, sets[longer]


def _joined(
    table: TableText, column: str, cell: str, label: str, join: str, what: str = "is made of other labels of the table"
) -> BrokenAnnotation:
    return BrokenAnnotation(
        f"{_line_of(table, column, cell)}: the label {label!r} {what}; are labels separated by {join!r}? Then "
        f"{_option(join)}; if it is one label, give --data.separator ';'"
    )


def sets_matrix(
    table: TableText,
    column: str,
    found: Mapping[str, Labels],
    images: np.ndarray,
    classes: Sequence[str] | None,
    negative: str | None,
) -> tuple[np.ndarray, list[str]]:
    """Label matrix and class names of a column of labels.

    Args:
        table, column: the table, and the column's name.
        found: labels by cell, of :func:`split_cells`.
        images: int64 [rows], the image of each row; several rows add up.
        classes: C names; None: the labels found, sorted.
        negative: the label that says that there is none; None: no label does.

    Returns:
        int8 [M, C] of 1 and -1, and C names.

    Raises:
        BrokenAnnotation: a label that is no class, or the negative label beside others.
    """
    names = list(classes) if classes is not None else _names(table, column, found, negative)
    place = {name: number for number, name in enumerate(names)}
    if negative is not None:
        place[negative] = len(names)
    rows = list(map(found.__getitem__, table.column(column)))
    counts = np.fromiter(map(len, rows), np.int64, len(rows))
    try:
        chosen = np.fromiter(map(place.__getitem__, chain.from_iterable(rows)), np.int64, counts.sum())
    except KeyError:
        cell, label = next((cell, label) for cell in found for label in found[cell] if label not in place)
        raise _unknown(table, column, cell, label, names) from None
    matrix = np.full((int(images.max()) + 1, len(names) + (negative is not None)), ABSENT, dtype=np.int8)
    matrix[np.repeat(images, counts), chosen] = PRESENT
    if negative is not None:
        both = np.flatnonzero((matrix[:, -1] == PRESENT) & (matrix[:, :-1] == PRESENT).any(1))
        if len(both):
            row = int(np.flatnonzero(images == both[0])[-1])
            raise BrokenAnnotation(f"{table.place(row)}: {negative!r}, the negative word, stands beside other labels")
        matrix = np.ascontiguousarray(matrix[:, :-1])
    return matrix, names


def _names(table: TableText, column: str, found: Mapping[str, Labels], negative: str | None) -> list[str]:
    """The classes that occur, sorted."""
    labels = set(chain.from_iterable(found.values()))
    if negative is not None:
        if negative not in labels:
            near = difflib.get_close_matches(negative, labels, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BrokenAnnotation(f"{table.path}: no row is labelled {negative!r}, the negative word{hint}")
        labels -= {negative}
    else:
        for label in sorted(labels):
            if label.casefold().replace("_", " ") in _NONE_WORDS:
                cell = next(cell for cell, own in found.items() if label in own)
                raise BrokenAnnotation(
                    f"{_line_of(table, column, cell)}: {label!r} seems to say that there is no label: give "
                    f"--data.negative_word '{label}' (graph: --negative-word), or, if it is a class, all classes by "
                    "--data.classes or classes.txt beside the table"
                )
    names = sorted(labels)
    check_distinct(f"the labels of {table.path}", names)
    return names


def _unknown(table: TableText, column: str, cell: str, label: str, names: Sequence[str]) -> BrokenAnnotation:
    near = difflib.get_close_matches(label, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if len([part for join in _JOINS for part in _parts(label, join) if part in names]) > 1:
        hint += "; --data.separator (graph: --separator) names what stands between labels"
    where = _line_of(table, column, cell)
    return BrokenAnnotation(
        f"{where}: {label!r} is none of the {len(names)} classes{alike_names([label], names) or hint}"
    )


def columns_matrix(table: TableText, names: Sequence[str], coding: Coding | None) -> np.ndarray:
    """Label matrix of a table with one column per class.

    Args:
        table: the table.
        names: the C columns.
        coding: what 1, 0, -1 and empty cells mean; None: "zero-one", where the cells have one reading.

    Returns:
        int8 [M, C] (:mod:`ssgrl_fast.labels.matrix`).

    Raises:
        BrokenAnnotation: a cell that is no label value or that the coding refuses, or cells with several readings.
    """
    columns = [table.column(name) for name in names]
    different = [set(column) for column in columns]
    signs = {text: sign_of(text) for text in set().union(*different)}
    for name, column, texts in zip(names, columns, different, strict=True):
        if wrong := [text for text in texts if signs[text] is None]:
            row = min(column.index(text) for text in wrong)
            raise BrokenAnnotation(
                f"{table.place(row)}: {name} must be 1, 0 or -1, got {column[row]!r} (True/False, yes/no and empty "
                "cells are read as well; other columns are left out where --data.classes names the classes)"
            )
    if coding is None:
        try:
            coding = coding_for({sign for sign in signs.values() if sign is not None}, _doubt(table, names, signs))
        except ValueError as error:
            raise BrokenAnnotation(str(error)) from None
    codes = {text: coding.codes.get(sign or "") for text, sign in signs.items()}
    matrix = np.empty((len(table.lines), len(names)), dtype=np.int8)
    for number, (name, column, texts) in enumerate(zip(names, columns, different, strict=True)):
        if refused := [text for text in texts if codes[text] is None]:
            row = min(column.index(text) for text in refused)
            raise BrokenAnnotation(
                f"{table.place(row)}: {name} is {column[row]!r}, which coding {coding} does not have"
            )
        matrix[:, number] = np.fromiter(map(codes.__getitem__, column), np.int8, len(column))
    return matrix


def _doubt(table: TableText, names: Sequence[str], signs: Mapping[str, str | None]) -> str:
    """The place of the first -1, or of the first empty cell where there is none; opens a message."""
    for sign in ("-1", "empty"):
        texts = {text for text, own in signs.items() if own == sign}
        for name in names if texts else ():
            row = next((row for row, cell in enumerate(table.column(name)) if cell in texts), None)
            if row is not None:
                return f"{table.place(row)}, column {name!r}"
    return str(table.path)
