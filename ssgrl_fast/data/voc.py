"""Image sets annotated in the Pascal VOC format: one XML file per image, with the class name and the
"difficult" flag of each object.

Two folder layouts are supported:

| | devkit | flat |
|---|---|---|
| images | ``JPEGImages/<id>.jpg`` | ``<split>/<name>.jpg``, or another extension |
| annotations | ``Annotations/<id>.xml`` | ``<split>/<name>.xml``, beside the image |
| splits | lists ``ImageSets/Main/<split>.txt`` | sub-folders, or the folder itself |

The label of a class is 1 if the image has a non-difficult object of it, 0 if all its objects are difficult, and -1 if
it has none; a missing <difficult> means not difficult (D27, D28). The loss and the metrics decide how label 0 counts.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ssgrl_fast.data.base import FileDataset, OnError, Transform, check_distinct, read_all
from ssgrl_fast.data.errors import BrokenAnnotation, warn_of_label_cache
from ssgrl_fast.data.images import EXTENSIONS

_LISTS = ("train", "val", "trainval", "test")


class _Entry(NamedTuple):
    """One image of a split with its labels."""

    id: str
    image: Path
    present: dict[str, int]  # class name -> 1 present, 0 all objects difficult; absent classes are not listed


class PascalVOC(FileDataset):
    """One split of a set in the Pascal VOC format.

    Args:
        root: a devkit (``VOCdevkit``, the folder above it, or ``VOC2007`` itself) or a flat folder.
        split: devkit: the name of a list, ``"trainval"``. Flat: a sub-folder of ``root``; None: ``root`` itself.
        year: the ``VOC<year>`` to read, for a devkit with several years.
        classes: the C class names in column order. None: the names of the devkit's per-class lists, or without such
            lists all names in the annotations of this split, sorted. ``class_source`` tells which of these was used.
        transform: None: ``eval_transform()``.
        seed: seed of the random transform.
        on_error: ``"raise"``, or ``"skip"``: entries with a broken or missing annotation or image are left out and
            listed in ``skipped``, with one warning (see FileDataset).
        label_cache: deprecated, without effect.

    Raises:
        FileNotFoundError: a folder, list, annotation or image does not exist; the message names it.
        BrokenAnnotation: malformed XML, an object without a name, a difficult flag other than 0 or 1, or a class that
            is not in ``classes``; the message names the file.
        ValueError: an empty folder or list, several years and no ``year``, several images for one annotation, or every
            image skipped.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        *,
        year: str | None = None,
        classes: Sequence[str] | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        on_error: OnError = "raise",
        label_cache: str | Path | None = None,
    ) -> None:
        # class names: the argument, the devkit's per-class lists, or (below) the annotations
        warn_of_label_cache(label_cache)
        root = Path(root)
        devkit = find_devkit(root, year)
        self.class_source = "argument classes"
        if classes is None and devkit is not None and (listed := _listed_classes(devkit)):
            classes, self.class_source = listed, f"per-class lists in {devkit / 'ImageSets' / 'Main'}, sorted"
        if classes is not None:
            check_distinct("classes", classes)
        known = None if classes is None else frozenset(classes)
        # labels of every entry, from the cache or from the annotations
        candidates = _flat_entries(root, split) if devkit is None else _devkit_entries(devkit, split)
        entries, skipped = read_all(candidates, lambda files: _read(*files, known), on_error)
        if classes is None:
            classes = sorted({name for entry in entries for name in entry.present})
            self.class_source = f"names in {len(entries)} annotations, sorted"
            if not classes:
                where = root if split is None else root / split
                raise ValueError(
                    f"{where}: no class names: none of {len(candidates)} annotations is readable and has a named object"
                    f"{_first(skipped)}"
                )
        super().__init__(
            classes,
            _label_matrix(entries, classes),
            [entry.id for entry in entries],
            [entry.image for entry in entries],
            skipped=skipped,
            on_error=on_error,
            transform=transform,
            seed=seed,
        )


def read_annotation(path: Path) -> dict[str, int]:
    """Read one XML file: class name -> 1 if a non-difficult object of it exists, 0 if all its objects are difficult.

    Raises:
        FileNotFoundError, BrokenAnnotation: see :func:`read_objects`.
    """
    present: dict[str, int] = {}
    for name, difficult in read_objects(path):
        present[name] = max(present.get(name, 0), int(not difficult))
    return present


def count_objects(root: str | Path, split: str | None, classes: Sequence[str], *, year: str | None = None) -> Tensor:
    """Count the non-difficult objects of each class in every image of a split, int64 [M, C].

    Arguments and errors as for PascalVOC. An object whose class is not in ``classes`` is an error. Image files are not
    read and need not exist.
    """
    check_distinct("classes", classes)
    devkit = find_devkit(Path(root), year)
    entries = _flat_entries(Path(root), split) if devkit is None else _devkit_entries(devkit, split)
    column = {name: index for index, name in enumerate(classes)}
    counts = torch.zeros(len(entries), len(classes), dtype=torch.int64)
    for row, (_, annotation, _) in enumerate(entries):
        for name, difficult in read_objects(annotation):
            if name not in column:
                raise BrokenAnnotation(f"{annotation}: unknown class {name}, expected one of {', '.join(classes)}")
            counts[row, column[name]] += not difficult
    return counts


def read_objects(path: Path) -> list[tuple[str, bool]]:
    """Read one XML file: the class name of every object, and whether it is difficult.

    Raises:
        FileNotFoundError: the file does not exist.
        BrokenAnnotation: malformed XML, an object without a name, or a difficult flag other than 0 or 1.
    """
    try:
        annotation = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise BrokenAnnotation(f"{path}: not valid XML: {error}") from error
    if annotation.tag != "annotation":
        raise BrokenAnnotation(f"{path}: the root element must be <annotation>, got <{annotation.tag}>")
    objects: list[tuple[str, bool]] = []
    for number, entry in enumerate(
        annotation.findall("object"), start=1
    ):  # direct children only: names of a <part> are not classes
        name = (entry.findtext("name") or "").strip()
        difficult = (entry.findtext("difficult") or "0").strip()
        if not name:
            raise BrokenAnnotation(f"{path}: object {number} has no <name>")
        if difficult not in ("0", "1"):
            raise BrokenAnnotation(f"{path}: <difficult> of object {number} ({name}) must be 0 or 1, got {difficult!r}")
        objects.append((name, difficult == "1"))
    return objects


def find_devkit(root: Path, year: str | None = None) -> Path | None:
    """The folder ``VOC<year>`` (with ``ImageSets/Main``) inside ``root``, or ``root`` itself; None for a flat folder.

    Raises:
        FileNotFoundError: ``root`` does not exist, or does not have this year.
        ValueError: several years, and ``year`` is None.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    inside = [folder for pattern in ("VOC*", "VOCdevkit/VOC*") for folder in sorted(root.glob(pattern))]
    devkits = [folder for folder in (root, *inside) if (folder / "ImageSets" / "Main").is_dir()]
    if year is not None:
        devkits = [folder for folder in devkits if folder.name == f"VOC{year}"]
        if not devkits:
            raise FileNotFoundError(f"{root}: no VOC{year} with ImageSets/Main in it")
    if len(devkits) > 1:
        raise ValueError(f"{root}: year must choose one of {', '.join(folder.name for folder in devkits)}")
    return devkits[0] if devkits else None


def default_splits(root: str | Path, year: str | None = None) -> tuple[str | None, str | None]:
    """The training and the test split of a data set: the lists ``trainval`` and ``test`` of a devkit, or the folders
    ``train`` and ``test``; None for one that does not exist."""
    devkit = find_devkit(Path(root), year)
    if devkit is None:
        train, test = ((name if (Path(root) / name).is_dir() else None) for name in ("train", "test"))
        return train, test
    lists = devkit / "ImageSets" / "Main"
    return "trainval", "test" if (lists / "test.txt").is_file() else None


def read_list(path: Path) -> list[str]:
    """The image ids of a list: the first word of each non-empty line, with any line ending; the last newline is
    optional.

    Raises:
        FileNotFoundError: the list does not exist; the message names the lists that do.
        ValueError: the list is empty, or names an image twice.
        BrokenAnnotation: the file is not UTF-8 text.
    """
    if not path.is_file():
        lists = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.txt") if "_" not in entry.stem)) or "none"
        raise FileNotFoundError(f"{path}: no such list; available lists: {lists}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BrokenAnnotation(f"{path}: not UTF-8 text: {error}") from error
    ids = [words[0] for words in map(str.split, lines) if words]
    if not ids:
        raise ValueError(f"{path}: the list names no image")
    if len(set(ids)) < len(ids):
        repeated = next(entry for position, entry in enumerate(ids) if entry in ids[:position])
        raise ValueError(f"{path}: image {repeated} is listed twice")
    return ids


def _devkit_entries(devkit: Path, split: str | None) -> list[tuple[str, Path, Path]]:
    """(id, annotation, image) of every id of a list."""
    if split is None:
        raise ValueError(f"{devkit}: split must name a list in ImageSets/Main, got None")
    ids = read_list(devkit / "ImageSets" / "Main" / f"{split}.txt")
    return [(entry, devkit / "Annotations" / f"{entry}.xml", devkit / "JPEGImages" / f"{entry}.jpg") for entry in ids]


def _flat_entries(root: Path, split: str | None) -> list[tuple[str, Path, Path]]:
    """(id, annotation, image) of every image or annotation of a folder, sorted. A missing image or annotation is
    reported when the entry is read."""
    folder = root if split is None else root / split
    if not folder.is_dir():
        folders = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())) or "none"
        raise FileNotFoundError(f"{folder}: no such folder; available folders: {folders}")
    images: dict[str, Path] = {}
    annotations = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".xml":
            annotations[path.stem] = path
        elif path.suffix.lower() in EXTENSIONS:
            if path.stem in images:
                raise ValueError(
                    f"{path}: {images[path.stem].name} has the same name, so the annotation would belong to both"
                )
            images[path.stem] = path
    stems = sorted({*images, *annotations})
    if not stems:
        raise ValueError(f"{folder}: no images with .xml annotations in this folder")
    return [
        (
            images[stem].name if stem in images else stem,
            annotations.get(stem, folder / f"{stem}.xml"),
            images.get(stem, folder / f"{stem}.jpg"),
        )
        for stem in stems
    ]


def _read(id: str, annotation: Path, image: Path, known: frozenset[str] | None) -> _Entry:
    if not annotation.is_file():
        raise FileNotFoundError(f"{annotation}: no such annotation, for image {image.name}")
    if not image.is_file():
        raise FileNotFoundError(f"{image}: no such image, for annotation {annotation.name}")
    present = read_annotation(annotation)
    if known is not None and (unknown := sorted(set(present) - known)):
        raise BrokenAnnotation(
            f"{annotation}: unknown class {', '.join(unknown)}, expected one of {', '.join(sorted(known))}"
        )
    return _Entry(id, image, present)


def _label_matrix(entries: Sequence[_Entry], classes: Sequence[str]) -> Tensor:
    """int8 [M, C]."""
    labels = torch.full((len(entries), len(classes)), -1, dtype=torch.int8)
    column = {name: index for index, name in enumerate(classes)}
    for row, entry in enumerate(entries):
        for name, code in entry.present.items():
            labels[row, column[name]] = code
    return labels


def _listed_classes(devkit: Path) -> list[str]:
    """The classes with per-class lists such as ``cat_train.txt``, sorted."""
    names = (path.stem.rpartition("_") for path in (devkit / "ImageSets" / "Main").glob("*_*.txt"))
    return sorted({name for name, _, split in names if name and split in _LISTS})


def _first(skipped: Sequence[str]) -> str:
    return f"; first error: {skipped[0]}" if skipped else ""
