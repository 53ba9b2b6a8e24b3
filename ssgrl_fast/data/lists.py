"""Lists of image names: one name per line, as ``ImageSets/Main`` of a VOC devkit holds them, with or without a label
1, 0 or -1 behind each name.

A name may hold blanks, stand in double quotes (as Datumaro writes names with blanks), or carry the extension of its
image. Only 1, 0 or -1 at the end of a line is a label.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ssgrl_fast._utils.text import read_lines
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.images import EXTENSIONS

__all__ = ["read_label_list", "read_list"]

_LABELLED = re.compile(r"(.*\S)\s+(-1|0|1|\+1)")


def read_list(path: Path, known: Callable[[str], bool] = lambda name: False) -> list[str]:
    """The image names of a list, with any line ending; the last newline is optional.

    Args:
        path: the list.
        known: whether there is an image of this name. It decides how a line is read that can be read in several ways:
            with the label or with the extension as a part of the name, or with its quotes. Without it, labels are cut
            off where every line has one, quotes where they enclose the whole name, extensions never.

    Raises:
        FileNotFoundError: the list does not exist; the message names the lists that do.
        ValueError: the list is empty, or names an image twice.
        BrokenAnnotation: the file is not UTF-8 text.
    """
    lines = [line for _, line in _lines(path)]
    every = all(map(_LABELLED.fullmatch, lines))
    names = [_name(line, every, known) for line in lines]
    _check_distinct(path, names)
    return names


def read_label_list(path: Path, known: Callable[[str], bool] = lambda name: False) -> dict[str, int]:
    """The labels of a class: image name to 1 present, 0 only difficult objects, or -1 absent.

    Arguments and errors as for :func:`read_list`.

    Raises:
        BrokenAnnotation: also a line without a label; the message names the line.
    """
    labels: list[tuple[str, int]] = []
    for number, line in _lines(path):
        match = _LABELLED.fullmatch(line)
        if match is None:
            raise BrokenAnnotation(f"{path}, line {number}: expected an image and 1, 0 or -1, got {line!r}")
        labels.append((_plain(match[1], known), int(match[2])))
    _check_distinct(path, [name for name, _ in labels])
    return dict(labels)


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    if not path.is_file():
        lists = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.txt") if "_" not in entry.stem)) or "none"
        raise FileNotFoundError(f"{path}: no such list; available lists: {lists}")
    try:
        lines = [(number, line.strip()) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    except ValueError as error:
        raise BrokenAnnotation(str(error)) from error
    if not lines:
        raise ValueError(f"{path}: the list names no image")
    return lines


def _name(line: str, every: bool, known: Callable[[str], bool]) -> str:
    """The image that a line names; ``every``: all lines of the list end in a label."""
    whole = _plain(line, known)
    match = _LABELLED.fullmatch(line)
    if match is None or known(whole):
        return whole
    cut = _plain(match[1], known)
    return cut if every or (known(cut) and not known(match[2])) else whole


def _plain(text: str, known: Callable[[str], bool]) -> str:
    """A name without the quotes around it and without an image's extension, unless it is known with them."""
    quoted = len(text) > 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1]
    inner = text[1:-1] if quoted else text
    for name in (text, inner):
        if known(name):
            return name
        stem, dot, extension = name.rpartition(".")
        if stem and f"{dot}{extension.lower()}" in EXTENSIONS and known(stem):
            return stem
    return inner


def _check_distinct(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        repeated = next(entry for position, entry in enumerate(names) if entry in names[:position])
        raise ValueError(f"{path}: image {repeated} is listed twice")
