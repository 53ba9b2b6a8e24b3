"""NumPy files read with nothing in them trusted: an array is made only where its header fits the bytes that follow it.

``np.load`` makes the array that a header promises before it looks for its bytes, and lets out whatever a damaged header
raises (TokenError, SyntaxError, MemoryError, …). Objects are never loaded: they would run code.
"""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import numpy as np

__all__ = ["read_array", "read_arrays"]

_RATIO = 1032  # bytes that deflate makes of one at most
Array = np.ndarray[Any, np.dtype[Any]]


def read_array(source: str | os.PathLike[str] | bytes, *, mapped: bool = False) -> Array:
    """The array of a .npy file.

    Args:
        source: the file, or its bytes.
        mapped: leave the values of a file where they are, as a read-only memory map.

    Raises:
        OSError: the file cannot be read.
        ValueError: no .npy, a damaged header, Python objects, or fewer bytes than the header promises. The message does
            not name the file.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        _check_header(stream, size)
        if not mapped:
            stream.seek(0)
            return _read(stream)
    assert not isinstance(source, bytes)
    return np.load(source, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def read_arrays(source: Path | bytes, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Array]:
    """Arrays of a .npz archive by name; others in it are not read.

    Args:
        source: the file, or its bytes.
        needed: names that must be there.
        optional: names that may be.

    Raises:
        OSError: the file cannot be read.
        ValueError: no such archive, a needed array is missing, or as for :func:`read_array`.
    """
    try:
        with ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
            if missing := [name for name in needed if name not in entries]:
                raise ValueError(f"it holds {', '.join(entries) or 'nothing'}, expected {' and '.join(missing)}")
            arrays = {}
            for name in [*needed, *(name for name in optional if name in entries)]:
                entry = entries[name]
                if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                    raise ValueError(f"its array {name!r} is compressed in another way than NumPy's")
                with archive.open(entry) as stream:
                    _check_header(stream, min(entry.file_size, _RATIO * entry.compress_size))
                with archive.open(entry) as stream:
                    arrays[name] = _read(stream)
            return arrays
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"no whole .npz archive: {error}") from error


def _check_header(stream: IO[bytes], size: int) -> None:
    """Raise ValueError for a header that cannot be read, or promises more than the ``size`` bytes of its file hold."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except (OSError, BadZipFile, zlib.error):
        raise
    except Exception as error:  # damaged headers raise many types: TokenError, SyntaxError, RecursionError, …
        raise ValueError(f"no .npy with a readable header: {error}") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded")
    if min(shape, default=0) < 0 or math.prod(shape) * max(dtype.itemsize, 1) > size - stream.tell():
        raise ValueError(f"its header promises {dtype} {list(shape)}, and {size - stream.tell()} bytes follow it")


def _read(stream: IO[bytes]) -> Array:
    try:
        return np.lib.format.read_array(stream, allow_pickle=False)
    except MemoryError as error:
        raise ValueError(f"the memory does not suffice: {error}") from error
