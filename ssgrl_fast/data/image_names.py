"""Finds the image file that a list or table names, with or without its extension."""

from __future__ import annotations

import os
from pathlib import Path

from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.images import EXTENSIONS


class ImageNames:
    """Image files by the names that an annotation gives them.

    Args:
        folder: what names are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        """
        path = os.path.join(self._prefix, name)
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
        return Path(parent, files[0])

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
