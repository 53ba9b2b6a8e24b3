"""Where the images of a collection lie: files, lists of names, WebDataset shards (tar archives), addresses of buckets;
each as names with what opens them.

An address is what fsspec knows: ``s3://``, ``gs://``, ``hf://``, ``https://``, ``memory://`` … A shard is a name that
ends in .tar, .tar.gz, .tgz, .tar.bz2 or .tar.xz, on a disk or at an address. It is read as a stream, and nothing of it
is written to a disk.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Callable, Container, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.escape import for_table
from ssgrl_fast.data.errors import BrokenAnnotation, BrokenImage, Unreachable
from ssgrl_fast.data.images import is_image_name
from ssgrl_fast.data.table_file import open_parquet, read_text

__all__ = ["ImageSource", "file_system", "find_at", "is_address", "is_shard", "open_images", "read_names", "walk"]

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SHARD = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST = 1 << 30
"""Bytes of an image file in a shard at most: it is held in memory."""


class ImageSource(NamedTuple):
    """An image: its name, and what gives its bytes as a binary file; None: the name is a file."""

    name: str
    opener: Callable[[], IO[bytes]] | None = None


def is_address(name: str) -> bool:
    """Whether a name is an address, ``scheme://…``."""
    return _ADDRESS.match(name) is not None


def is_shard(name: str) -> bool:
    """Whether a name is a shard's, by its ending in any letters."""
    return name.lower().endswith(_SHARD)


def read_names(path: str, column: str = "file") -> list[str]:
    """The images and shards that a list names, in its order; relative names are relative to the list's folder.

    Args:
        path: text with a name per line, in any encoding; a table .csv or .tsv, or .parquet, with a column of names.
        column: of a table.

    Raises:
        FileNotFoundError: no such list.
        BrokenAnnotation: no such column, or a row without a name.
        ValueError: the list names nothing.
    """
    source = Path(path)
    if source.suffix.lower() == ".parquet":
        with open_parquet(source) as file:
            if column not in file.schema_arrow.names:
                known = ", ".join(file.schema_arrow.names)
                raise BrokenAnnotation(f"{path}: no column {column!r}, which --list-column names; there are {known}")
            cells = file.read([column])[column].to_pylist()
        names = [os.fsdecode(cell) if isinstance(cell, bytes) else cell for cell in cells]
    elif source.suffix.lower() in (".csv", ".tsv"):
        names = read_text(source, lambda header: column in header, column).column(column)
    else:
        lines = re.split(b"\r\n|\n|\r", source.read_bytes().removeprefix(b"\xef\xbb\xbf"))
        names = [os.fsdecode(line) for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path}: the list names no image")
    if not all(isinstance(name, str) and name for name in names):
        row = next(row for row, name in enumerate(names, start=1) if not isinstance(name, str) or not name)
        raise BrokenAnnotation(f"{path}: row {row} has no name in the column {column!r}")
    return [name if is_address(name) else str(source.parent / name) for name in names]


def find_at(address: str) -> tuple[list[str], list[str]]:
    """Images at an address, sorted: the file itself, the files of a pattern with ``*``, or the images of a folder.

    Returns:
        The images and shards, and the files of a folder that were passed over because of their extension.

    Raises:
        ImportError: fsspec, or its package for this scheme, is not installed.
        FileNotFoundError: nothing is there.
        Unreachable: the store gives no answer.
    """
    system, place = file_system(address)
    try:
        if "*" in place:
            found, others = [name for name in sorted(system.glob(place)) if not system.isdir(name)], []
        elif system.isfile(place):
            return [address], []
        else:
            inside = [name for name in sorted(system.find(place)) if not PurePosixPath(name).name.startswith(".")]
            found = [name for name in inside if is_image_name(PurePosixPath(name))]
            others = [name for name in inside if not is_image_name(PurePosixPath(name))]
    except FileNotFoundError:
        found = []
    except Exception as error:  # of any client library
        raise Unreachable(f"{address}: {error or type(error).__name__}") from error
    if not found:
        raise FileNotFoundError(f"{address}: no image there")
    return [system.unstrip_protocol(name) for name in found], [system.unstrip_protocol(name) for name in others]


def open_images(names: Iterable[str], done: Container[str] = frozenset()) -> Iterator[ImageSource]:
    """The images of these names; those of a shard are called ``shard.tar/member``.

    A shard that is missing or damaged gives, behind the images before the damage, an entry with the shard's own name
    that cannot be opened: FileNotFoundError or BrokenImage, whose message names it.

    Args:
        names: files, addresses and shards.
        done: names to leave out, as the rows of :mod:`ssgrl_fast.inference.shards` have them.

    Raises:
        ImportError: as :func:`find_at`.
        Unreachable: a shard cannot be read from where it is stored.
    """
    for name in names:
        if for_table(name) in done:
            continue
        if is_shard(name):
            yield from _members(name, done)
        else:
            yield ImageSource(name, partial(_fetch, name) if is_address(name) else None)


def file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the place in it.

    Raises:
        ImportError: fsspec, or its package for this scheme, is not installed.
        ValueError: an unknown scheme.
    """
    core = need("fsspec.core", "remote", f"the address {address}")
    try:
        system, place = core.url_to_fs(address)
    except ValueError as error:
        raise ValueError(f"{address}: {error}") from error
    return system, place


def _fetch(address: str) -> IO[bytes]:
    system, place = file_system(address)
    return io.BytesIO(_answer(address, lambda: system.cat_file(place)))


def _answer(address: str, ask: Callable[[], Any]) -> Any:
    """What a store gives.

    Raises:
        FileNotFoundError, BrokenImage: it has no such file, or does not show it.
        Unreachable: it gives no answer.
    """
    try:
        return ask()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{address}: no such file") from error
    except PermissionError as error:
        raise BrokenImage(f"{address}: may not be read: {error}") from error
    except Exception as error:  # of any client library
        raise Unreachable(f"{address}: {error or type(error).__name__}") from error


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error: tarfile ends an archive there as if it were complete."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the mark at the end
                raise
            raise tarfile.ReadError(f"after {archive.offset:,} bytes: {error}") from error


def walk(file: IO[bytes], mode: Any) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of an archive, whole to its end; ``mode``: of ``tarfile.open``.

    Raises:
        Exception: it is damaged; tarfile raises many types.
    """
    with tarfile.open(fileobj=file, mode=mode, tarinfo=_Member, encoding="utf-8") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep every one
            yield archive, member
        rest: Any = archive.fileobj
        while block := rest.read(1 << 20):
            if block.count(0) < len(block):
                raise tarfile.ReadError("data follow the mark at its end: several archives in one file?")


def _members(shard: str, done: Container[str]) -> Iterator[ImageSource]:
    seen: set[str] = set()
    try:
        with _open(shard) as file:
            for archive, member in walk(file, "r|*"):
                path, name = PurePosixPath(member.name), f"{shard}/{member.name}"
                if not member.isfile() or path.name.startswith(".") or not is_image_name(path):
                    continue
                if name in seen:
                    raise tarfile.ReadError(f"{member.name} occurs twice")
                seen.add(name)
                if for_table(name) in done:
                    continue
                if member.size > LARGEST:
                    broken = BrokenImage(f"{name}: {member.size:,} bytes, expected an image of at most {LARGEST:,}")
                    yield ImageSource(name, partial(_refuse, broken))
                    continue
                content = archive.extractfile(member)
                assert content is not None  # of a file
                yield ImageSource(name, partial(io.BytesIO, content.read()))
    except (FileNotFoundError, BrokenImage) as error:
        yield ImageSource(shard, partial(_refuse, error))
    except OSError as error:
        raise Unreachable(f"{shard}: {error}") from error
    except Exception as error:  # tarfile raises many types for damaged headers
        yield ImageSource(shard, partial(_refuse, BrokenImage(f"{shard}: a damaged tar archive: {error}")))


def _open(shard: str) -> Any:
    if not is_address(shard):
        return _answer(shard, lambda: open(shard, "rb"))
    system, place = file_system(shard)
    return _answer(shard, lambda: system.open(place, "rb"))


def _refuse(error: Exception) -> IO[bytes]:
    raise error
