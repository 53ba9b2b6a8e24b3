"""Finds the image file that a list or table names, with or without its extension, and only in the set's folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ssgrl_fast.data.errors import BrokenAnnotation, OutsideRoot
from ssgrl_fast.data.images import EXTENSIONS


class Borders:
    """The folders that the files of a data set may lie in, symbolic links followed.

    Args:
        *folders: these and what is inside.
        allow_outside: nothing is refused.
    """

    def __init__(self, *folders: str | Path, allow_outside: bool = False) -> None:
        self._folders = None if allow_outside else [*dict.fromkeys(map(os.path.realpath, folders))]
        self._real: dict[str, str] = {}

    def check(self, path: str | Path, listed: str) -> Path:
        """The path, if its file lies inside; it need not exist.

        Args:
            path: of an image, an annotation or a list.
            listed: where it is listed; the message has it in parentheses.

        Raises:
            OutsideRoot: it lies elsewhere, by its name or by a symbolic link.
        """
        if self._folders is None:
            return Path(path)
        folder, name = os.path.split(path)
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder)
        plain = name not in ("", ".", "..") and not os.path.islink(path)
        place = os.path.join(self._real[folder], name) if plain else os.path.realpath(path)
        if not any(place.startswith(os.path.join(inside, "")) for inside in self._folders):
            raise OutsideRoot(
                f"{path} ({listed}): a file outside the data set's folder {' and '.join(self._folders)}: {place}; "
                "--data.allow_outside true (train, graph: --allow-outside; in Python allow_outside=True) reads it"
            )
        return Path(path)


class ImageNames:
    """Image files by the names that an annotation gives them.

    Args:
        folder: what names are relative to.
        borders: where the files may lie.
    """

    def __init__(self, folder: Path, borders: Borders) -> None:
        self.folder, self.borders = folder, borders
        self._prefix = os.path.join(folder, "")
        self._stems: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str, listed: str) -> Path:
        """The file of this name or, if there is none, the image that has it but for its extension.

        Args:
            name: relative to the folder, or absolute.
            listed: where it is listed; closes the messages.

        Raises:
            FileNotFoundError: neither exists.
            BrokenAnnotation: several images of this name differ in their extension.
            OutsideRoot: it is outside the borders.
        """
        path = os.path.join(self._prefix, name)
        self.borders.check(path, listed)
        if os.path.isfile(path):
            return Path(path)
        parent, stem = os.path.split(path)
        files = self._images(parent).get(stem, [])
        if len(files) > 1:
            raise BrokenAnnotation(f"{path}: may be {' or '.join(files)}, listed in {listed}; give the extension there")
        if not files and "://" in name:
            raise FileNotFoundError(
                f"{name}: an address on the web, no file, listed in {listed}; download the images and name the files"
            )
        if not files:
            raise FileNotFoundError(f"{path}: no such image, listed in {listed}")
        return self.borders.check(os.path.join(parent, files[0]), listed)

    def _images(self, folder: str) -> dict[str, list[str]]:
        """The image files of a folder by their names without extension."""
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            for file in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                stem, extension = os.path.splitext(file)
                if extension.lower() in EXTENSIONS:
                    stems.setdefault(stem, []).append(file)
            self._stems[folder] = stems
        return self._stems[folder]


def row_of(name: str, rows: Mapping[str, int]) -> int | None:
    """The row of a table that belongs to an image, or None. A table may name an image by any end of its path, with or
    without the extension; of several such names in the table the longest counts."""
    stem, dot, extension = name.rpartition(".")
    bare = f".{extension.lower()}" in EXTENSIONS and bool(dot)
    while True:
        for shown in (name, stem) if bare else (name,):
            if (row := rows.get(shown)) is not None:
                return row
        _, slash, name = name.partition("/")
        stem = stem.partition("/")[2]
        if not slash:
            return None
