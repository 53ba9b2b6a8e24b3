"""Where each image of some WebDataset shards lies: the headers of tar archives, read once, and the bytes at a place.

In WebDataset the key of a member is its path up to the first dot of its own name, and members with one key are one
sample: ``a.jpg``, ``a.json``. The labels of an image are the member with its name up to the last dot, or else with its
key, if no other image has this key:

| members | the labels of the image |
|---|---|
| a.jpg, a.json | a.json |
| a.jpg, a.json, a.meta.json | a.json; further fields of a sample are not read |
| a.1.jpg, a.json | a.json, as in WebDataset |
| a.1.jpg, a.1.json, a.2.jpg, a.2.json | those with the same name: photographs whose names hold dots |
| a.1.jpg, a.json, a.1.json | refused, both may be meant |
| a.1.jpg, a.2.jpg, a.json | refused, one sample with two images |
"""

from __future__ import annotations

import os
import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import basename, splitext
from typing import IO, Any

from ssgrl_fast._utils.checks import some
from ssgrl_fast._utils.escape import for_table
from ssgrl_fast.data.errors import BrokenAnnotation, BrokenImage
from ssgrl_fast.data.image_names import Borders
from ssgrl_fast.data.images import EXTENSIONS
from ssgrl_fast.data.sources import LARGEST, is_address, is_shard, walk
from ssgrl_fast.data.split_words import role_of
from ssgrl_fast.data.table_file import check_printable

__all__ = ["ShardIndex", "bytes_at", "find_shards", "folder_of"]

_LONGEST = 1 << 20  # bytes of the labels of an image

# identifies a shard: its resolved path, size, time of change and inode
Identity = tuple[str, int, int, int]


@dataclass
class ShardIndex:
    """The images of some shards, M of them.

    Attributes:
        names: ``shard.tar/member``, the shard relative to the root.
        places: three numbers per image, one image after another: its shard, its first byte, its size in bytes.
        beside: the labels beside the images as a cell of a table, or why they cannot be read, by extension and the
            image's number.
        shards: the archives.
        refuse: called with the message about an entry that is left out; may raise it.
    """

    refuse: Callable[[str], None]
    names: list[str] = field(default_factory=list)
    places: array[int] = field(default_factory=lambda: array("q"))
    beside: dict[str, dict[int, str | ValueError]] = field(default_factory=lambda: defaultdict(dict))
    shards: list[Identity] = field(default_factory=list)

    def add(self, path: Path, name: str, readers: Mapping[str, Callable[[str], str]]) -> None:
        """Read a shard's headers and the labels beside its images.

        Args:
            path: the shard.
            name: its images are called ``name/member``.
            readers: by extension of the labels what makes their text a cell of a table, or raises ValueError.
        """
        images: dict[str, int] = {}  # by name without extension
        cells: dict[tuple[str, str], str | ValueError] = {}
        with open(path, "rb") as file:
            self.shards.append(_identity(path, file))
            try:
                for archive, member in walk(file, "r:"):
                    shown = member.name.removeprefix("./")
                    stem, extension = splitext(shown)
                    extension = extension.lower()
                    wanted = extension in EXTENSIONS or extension in readers
                    if member.isdir() or basename(shown).startswith(".") or not wanted:
                        continue
                    problem = _problem(member, _LONGEST if extension in readers else LARGEST)
                    if (stem, extension) in cells:
                        problem = "occurs twice"
                    elif extension not in readers and stem in images:
                        problem = f"has the name of {self.names[images[stem]]} before its extension: expected one image"
                    if problem is not None:
                        self.refuse(f"{path}/{for_table(member.name)}: {problem}")
                    elif extension in readers:
                        content = archive.extractfile(member)
                        assert content is not None  # of a file
                        try:
                            cells[stem, extension] = readers[extension](content.read().decode("utf-8-sig"))
                        except ValueError as error:
                            cells[stem, extension] = error
                    else:
                        images[stem] = len(self.names)
                        self.names.append(f"{name}/{for_table(shown)}")
                        self.places.extend((len(self.shards) - 1, member.offset_data, member.size))
            except (BrokenAnnotation, OSError):
                raise
            except Exception as error:  # tarfile raises many types
                self.refuse(f"{path}: a damaged tar archive, or a compressed one: {error}")
        self._match(path, images, cells)

    def _match(self, path: Path, images: dict[str, int], cells: dict[tuple[str, str], str | ValueError]) -> None:
        """Give a shard's labels to its images, by the rule of the module."""
        samples: dict[str, list[int]] = defaultdict(list)
        for stem, image in images.items():
            samples[_key(stem)].append(image)
        for (stem, extension), cell in cells.items():
            key = _key(stem)
            owners = [images[stem]] if stem in images else samples.get(key, [])
            if stem not in images and stem != key:
                if owners and owners == [images.get(key)]:
                    continue  # a further field of the sample
                owners = []
            problem = None if owners else "labels without an image"
            if len(owners) > 1:
                names = some([self.names[image] for image in owners])
                problem = f"labels of {names}? Expected one image with this key, which ends at the first dot"
            elif owners and owners[0] in self.beside[extension]:
                problem = f"{self.names[owners[0]]} has other labels {extension}, with its key or its whole name"
            if problem is None:
                self.beside[extension][owners[0]] = cell
            else:
                self.refuse(f"{path}/{for_table(stem)}{extension}: {problem}")


def _key(name: str) -> str:
    """A member's key in WebDataset."""
    folder, slash, own = name.rpartition("/")
    return folder + slash + own.partition(".")[0]


def folder_of(root: str | Path) -> Path:
    """The folder of a data set: its root, or that of the one shard which is its root."""
    return Path(root) if Path(root).is_dir() else Path(root).parent


def find_shards(root: str | Path, allow_outside: bool) -> dict[Path, str]:
    """The shards, sorted, with the words of their splits: a shard's subfolder (``train/00000.tar``), or the known word
    in its name (``train-00000.tar``), or else its name without digits.

    Raises:
        ValueError: the root is an address.
        FileNotFoundError: no shard.
        OutsideRoot: a symbolic link leads out of the root.
        BrokenAnnotation: a shard is compressed.
    """
    if is_address(str(root)):
        raise ValueError(f"{root}: shards are read at any place, which an address does not allow: copy or mount them")
    folder, borders = Path(root), Borders(folder_of(root), allow_outside=allow_outside)
    inside = sorted(folder.rglob("[!.]*")) if folder.is_dir() else [folder]
    for link in [path for path in inside if path.is_symlink() and path.is_dir()]:  # which rglob does not enter
        borders.check(link, "a folder")
        inside += sorted(link.rglob("[!.]*"))
    found = [path for path in sorted(inside) if is_shard(path.name) and path.is_file()]
    if not found:
        raise FileNotFoundError(f"{root}: no shard (*.tar) there")
    for path in found:
        borders.check(path, "a shard")
        if path.suffix.lower() != ".tar":
            raise BrokenAnnotation(f"{path}: a compressed shard cannot be read from an arbitrary place: unpack it")
    return {path: _word(path.relative_to(folder_of(root))) for path in found}


def _word(shard: Path) -> str:
    folder = shard.parts[0] if len(shard.parts) > 1 else ""
    known = (part for part in (folder, *re.findall(r"[^\W\d_]+", shard.stem)) if role_of(part))
    return next(known, folder or re.sub(r"[\W\d_]+$", "", shard.stem))


def _problem(member: Any, largest: int) -> str | None:
    """Why a member is refused, or None; ``largest``: how many bytes it may have."""
    name = member.name
    if name.startswith("/") or ".." in name.split("/"):
        return "its name leads out of the archive"
    if not member.isreg() or member.issparse():
        return "a link or a sparse file, expected a plain file"
    if member.size > largest:
        return f"{member.size:,} bytes, expected at most {largest:,}"
    try:
        check_printable("", "its name", name)
    except BrokenAnnotation as error:
        return str(error).lstrip(": ")
    return None


def _identity(path: Path | str, file: IO[bytes]) -> Identity:
    facts = os.fstat(file.fileno())
    return os.path.realpath(path), facts.st_size, facts.st_mtime_ns, facts.st_ino


def bytes_at(shard: Identity, start: int, size: int) -> bytes:
    """The bytes at a place of a shard.

    Raises:
        FileNotFoundError: the shard is gone.
        BrokenImage: it has changed since its headers were read.
    """
    with open(shard[0], "rb", buffering=0) as file:
        if _identity(shard[0], file)[1:] != shard[1:]:
            raise BrokenImage(f"{shard[0]}: has changed since its headers were read")
        content = os.pread(file.fileno(), size, start)
    if len(content) < size:
        raise BrokenImage(f"{shard[0]}: only {len(content)} of {size} bytes could be read at byte {start}")
    return content
