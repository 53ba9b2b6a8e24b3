"""Atomic writes: a file is written beside its place, flushed to the disk and renamed, so it is whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike[str], *, alone: bool = False) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to, renamed to ``path`` at the end; the folder is created if needed.

    If anything is raised meanwhile, Ctrl-C included, the temporary file is removed and the earlier file stays. A device
    or a pipe (``/dev/stdout``) is written to directly.

    Args:
        path: the file.
        alone: no other process writes this file at the same time, so that the temporary file of a killed process is
            overwritten.

    Raises:
        OSError: the write failed, for example because the disk is full; the message names ``path``.
    """
    target = Path(path)
    if target.exists() and not (target.is_file() or target.is_dir()):
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.partial" if alone else f".{target.name}.{os.getpid()}.partial")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
        _flush_folder(target.parent)
    except OSError as error:
        named = OSError(f"{target}: could not be written, what was there is unchanged: {error.strerror or error}")
        named.errno = error.errno
        raise named from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace a file by text in UTF-8.

    Raises:
        OSError: as :func:`replacing`.
    """
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Replace a file by JSON text, indented by two.

    Raises:
        OSError: as :func:`replacing`.
        ValueError, TypeError: content that JSON cannot represent, such as NaN.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _flush_folder(folder: Path) -> None:
    """Flush a folder, so that a rename in it survives a loss of power."""
    with suppress(OSError):  # not every file system can; the file is whole in any case
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def config_folder() -> Path:
    """The folder of the training recipes: inside an installed package, or configs/ beside it in a source tree.

    Raises:
        FileNotFoundError: there is neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"no folder configs/ in {package} nor beside it")
