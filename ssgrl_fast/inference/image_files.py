"""Which files a command line names: image files, and the bundle that was trained last."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ssgrl_fast.data.images import is_image_name, passed_over_text
from ssgrl_fast.data.sources import find_at, is_address, read_names

__all__ = ["find_images", "find_sources", "newest_bundle", "search_images"]

_log = logging.getLogger(__name__)


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Image files as :func:`search_images` finds them; a line in the log names the files passed over."""
    files, passed_over = search_images(paths)
    if passed_over:
        _log.warning("%s", passed_over_text(passed_over))
    return files


def find_sources(paths: Sequence[str], lists: Sequence[str] = (), column: str = "file") -> tuple[list[str], list[str]]:
    """Names of images and shards (:mod:`ssgrl_fast.data.sources`): of files, folders and addresses, then of lists.

    Returns:
        The names, each once, and the files of folders that were passed over because of their extension.

    Raises:
        FileNotFoundError: as :func:`search_images`; a list, or a given address, that does not exist. What a list names
            need not exist.
        ValueError, Unreachable, ImportError: see :func:`~ssgrl_fast.data.sources.read_names` and
            :func:`~ssgrl_fast.data.sources.find_at`.
    """
    found: dict[str, None] = {}
    passed_over: dict[str, None] = {}
    for entry in paths:
        if Path(entry).suffix.lower() in (".csv", ".tsv", ".parquet") and Path(entry).is_file():
            raise ValueError(f"{entry}: a table, no image; --list {entry} takes the images that it names")
        images, others = find_at(entry) if is_address(entry) else search_images([entry])
        found.update(dict.fromkeys(map(str, images)))
        passed_over.update(dict.fromkeys(map(str, others)))
    for path in lists:
        found.update(dict.fromkeys(read_names(path, column)))
    return list(found), [name for name in passed_over if name not in found]


def search_images(paths: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """Image files: the given files, and those in the given folders and their subfolders, sorted by name in each folder.

    A given file is taken whatever its extension; in a folder, files with the extensions of the formats that Pillow
    decodes are taken, HEIC too if pillow-heif is installed. A file that occurs twice is listed once. Hidden files are
    not looked at.

    Returns:
        The image files, and the files of the folders that were passed over because of their extension.

    Raises:
        FileNotFoundError: a path that does not exist; a folder without any image.
    """
    files: dict[Path, None] = {}
    passed_over: dict[Path, None] = {}
    for entry in map(Path, paths):
        if entry.is_dir():
            inside = sorted(path for path in entry.rglob("*") if path.is_file() and not path.name.startswith("."))
            images = [path for path in inside if is_image_name(path)]
            others = [path for path in inside if not is_image_name(path)]
            if not images:
                text = passed_over_text(others)
                raise FileNotFoundError(f"{entry}: no image in this folder{f' ({text})' if text else ''}")
            files.update(dict.fromkeys(images))
            passed_over.update(dict.fromkeys(others))
        elif entry.is_file():
            files[entry] = None
        else:
            raise FileNotFoundError(f"{entry}: no such file or folder")
    return list(files), [path for path in passed_over if path not in files]


def newest_bundle(runs: Path) -> Path:
    """The bundle in a folder of runs that was written last.

    Raises:
        FileNotFoundError: there is none.
    """
    bundles = [path.parent for path in runs.glob("*/version_*/bundle/config.json")]
    if not bundles:
        raise FileNotFoundError(f"no bundle under {runs}/*/version_*/bundle: name one with --model, or run fit first")
    return max(bundles, key=lambda folder: (folder / "config.json").stat().st_mtime)
