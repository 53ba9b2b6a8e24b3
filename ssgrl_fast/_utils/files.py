"""Atomic writes: a file is written beside its place, flushed to the disk and renamed, so it is whole or absent."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

_DAY = 86400  # seconds


@contextmanager
def replacing(path: str | os.PathLike[str], *, alone: bool = False) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to, renamed to ``path`` at the end; the folder is created if needed.

    The file has the mode that the umask gives to a new file, also if its writer makes it for its owner alone. If
    anything is raised meanwhile, Ctrl-C included, the temporary file is removed and the earlier file stays. A device or
    a pipe (``/dev/stdout``) is written to directly.

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
    own = f".{target.name}.{socket.gethostname()}."
    part = target.with_name(f".{target.name}.partial" if alone else f"{own}{os.getpid()}.partial")
    for left in target.parent.glob(f".{escape(target.name)}.*.partial"):
        if _is_abandoned(left, own):
            left.unlink(missing_ok=True)
    try:
        mode = _mode_of_new_file(part)
        yield part
        if part.stat().st_mode != mode:
            os.chmod(part, stat.S_IMODE(mode))
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
        _flush_folder(target.parent)
    except OSError as error:
        raise naming(error, target) from error
    finally:
        part.unlink(missing_ok=True)


def _is_abandoned(part: Path, own: str) -> bool:
    """Whether a temporary file is of a killed process: of one of this machine (its name begins with ``own``) that lives
    no more, or of another machine and not written to for a day."""
    try:
        if not part.name.startswith(own):
            return time.time() - part.stat().st_mtime > _DAY
        os.kill(int(part.name.removeprefix(own).removesuffix(".partial")), 0)
    except ProcessLookupError:
        return True
    except (ValueError, OverflowError, OSError):
        pass
    return False


def naming(error: OSError, path: Path) -> OSError:
    """The error of a failed write with a message that names the file and says that what was there is unchanged."""
    named = OSError(f"{path}: could not be written, what was there is unchanged: {error.strerror or error}")
    named.errno = error.errno
    return named


def new_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new .npy file as a memory map to write to, all of its space on the disk taken first: a write to a map whose
    file has holes kills the process (SIGBUS) where the disk is full.

    Raises:
        OSError: there is not enough space, or the file would be larger than allowed.
    """
    try:
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise naming(error, path) from error
    return array


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, which ends with the process, once no other process holds it; gives whether it is held: it
    cannot be on file systems that have no locks on folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether another process holds a folder's lock, or none can be had."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def new_folder(parent: Path, start: str) -> Path:
    """A new folder with a name that begins with ``start``, of the mode that the umask gives (``mkdtemp``: the owner's).

    Raises:
        OSError: it could not be made.
    """
    folder = parent / f"{start}{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    return folder


def _mode_of_new_file(path: Path) -> int:
    """The mode that a file which is made at this path gets; there is none afterwards."""
    path.unlink(missing_ok=True)
    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    path.unlink()
    return mode


def write_text(path: str | os.PathLike[str], text: str, *, alone: bool = False) -> None:
    """Replace a file by text in UTF-8; ``alone`` as for :func:`replacing`. Bytes of file names that are no UTF-8 become
    ``\\udc80`` … ``\\udcff``, which JSON reads as the same name.

    Raises:
        OSError: as :func:`replacing`.
    """
    with replacing(path, alone=alone) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


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
