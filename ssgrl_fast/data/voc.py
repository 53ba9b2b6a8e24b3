"""Image sets annotated in the Pascal VOC format: one XML file an image, with its objects' names and difficult flags.

Two layouts are read:

| | devkit | flat |
|---|---|---|
| images | ``JPEGImages/<id>.jpg`` | ``<split>/<name>.jpg``, or another extension |
| annotations | ``Annotations/<id>.xml`` | ``<split>/<name>.xml``, beside the image |
| splits | lists ``ImageSets/Main/<split>.txt`` | sub-folders, or the folder itself |

A class is present (1) if a non-difficult object of it is, 0 if only difficult ones are, and absent (-1) otherwise; a
missing <difficult> means not difficult (D27, D28). What code 0 counts as is the loss's and the metrics' choice.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ssgrl_fast.data.base import FileDataset, OnError, Transform, check_distinct, read_all
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.images import EXTENSIONS
from ssgrl_fast.data.label_cache import CachedLabels, LabelCache

_LISTS = ("train", "val", "trainval", "test")


class _Entry(NamedTuple):
    id: str
    image: Path
    present: dict[str, int]  # class name -> 1 present, 0 only difficult objects


class PascalVOC(FileDataset):
    """One split of a set in the Pascal VOC format.

    Args:
        root: a devkit (``VOCdevkit``, the folder above it, or ``VOC2007`` itself) or a flat folder.
        split: devkit: the name of a list, ``"trainval"``. Flat: a sub-folder of ``root``; None: ``root`` itself.
        year: which ``VOC<year>`` of a devkit that holds several.
        classes: the C class names in column order. None: the devkit's per-class lists, or else all names in this
            split's annotations, either way sorted; ``class_source`` says which.
        transform: None: ``eval_transform()``.
        seed: of the transform's randomness.
        on_error: ``"raise"``, or ``"skip"``: entries with a broken or missing annotation or image are left out, listed
            in ``skipped`` and warned of (see FileDataset).
        label_cache: folder to keep what the annotations say in (:mod:`ssgrl_fast.data.label_cache`), or None. A set
            with entries left out is read anew each time.

    Raises:
        FileNotFoundError: no such folder, list, annotation or image; names it.
        BrokenAnnotation: malformed XML, an object without a name, a difficult flag other than 0 or 1, a class that is
            not in ``classes``; names the file.
        ValueError: an empty folder or list, several devkits and no ``year``, several images for one annotation,
            everything skipped.
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
        root = Path(root)
        devkit = find_devkit(root, year)
        self.class_source = "given"
        if classes is None and devkit is not None and (listed := _listed_classes(devkit)):
            classes, self.class_source = listed, f"per-class lists in {devkit / 'ImageSets' / 'Main'}, sorted"
        if classes is not None:
            check_distinct("classes", classes)
        known = None if classes is None else frozenset(classes)
        candidates = _flat_entries(root, split) if devkit is None else _devkit_entries(devkit, split)
        presence = _Presence(candidates, label_cache)
        entries, skipped = read_all(candidates, lambda files: _read(*files, known, presence), on_error)
        presence.keep()
        if classes is None:
            classes = sorted({name for entry in entries for name in entry.present})
            self.class_source = f"discovered in {len(entries)} annotations, sorted"
            if not classes:
                where = root if split is None else root / split
                raise ValueError(
                    f"{where}: none of {len(candidates)} annotations could be read and names an object{_first(skipped)}"
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
    """Read one XML file: class name -> 1 if a non-difficult object has it, 0 if only difficult ones do.

    Raises:
        FileNotFoundError, BrokenAnnotation: see :func:`read_objects`.
    """
    present: dict[str, int] = {}
    for name, difficult in read_objects(path):
        present[name] = max(present.get(name, 0), int(not difficult))
    return present


def count_objects(root: str | Path, split: str | None, classes: Sequence[str], *, year: str | None = None) -> Tensor:
    """How many non-difficult objects of each class every image of a split holds, int64 [M, C].

    Arguments and errors as for PascalVOC; an object of another class than those is an error, and no image file is
    looked for.
    """
    check_distinct("classes", classes)
    devkit = find_devkit(Path(root), year)
    found = _flat_entries(Path(root), split) if devkit is None else _devkit_entries(devkit, split)
    column = {name: index for index, name in enumerate(classes)}
    counts = torch.zeros(len(found), len(classes), dtype=torch.int64)
    for row, (_, annotation, _) in enumerate(found):
        for name, difficult in read_objects(annotation):
            if name not in column:
                raise BrokenAnnotation(f"{annotation}: unknown class {name}, expected one of {', '.join(classes)}")
            counts[row, column[name]] += not difficult
    return counts


def read_objects(path: Path) -> list[tuple[str, bool]]:
    """Read one XML file: the class of every object, and whether it is difficult.

    Raises:
        FileNotFoundError: no such file.
        BrokenAnnotation: it does not say so; names the file.
    """
    try:
        annotation = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise BrokenAnnotation(f"{path}: no readable XML: {error}") from error
    if annotation.tag != "annotation":
        raise BrokenAnnotation(f"{path}: the root element must be <annotation>, got <{annotation.tag}>")
    objects: list[tuple[str, bool]] = []
    for number, entry in enumerate(annotation.findall("object"), start=1):  # not <part>, whose names are no classes
        name = (entry.findtext("name") or "").strip()
        difficult = (entry.findtext("difficult") or "0").strip()
        if not name:
            raise BrokenAnnotation(f"{path}: object {number} has no <name>")
        if difficult not in ("0", "1"):
            raise BrokenAnnotation(f"{path}: <difficult> of object {number} ({name}) must be 0 or 1, got {difficult!r}")
        objects.append((name, difficult == "1"))
    return objects


def find_devkit(root: Path, year: str | None = None) -> Path | None:
    """The folder ``VOC<year>`` (with ``ImageSets/Main``) in or at ``root``; None for a flat folder.

    Raises:
        FileNotFoundError: no folder ``root``, or no such year in it.
        ValueError: several years, and none chosen.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    inside = [folder for pattern in ("VOC*", "VOCdevkit/VOC*") for folder in sorted(root.glob(pattern))]
    found = [folder for folder in (root, *inside) if (folder / "ImageSets" / "Main").is_dir()]
    if year is not None:
        found = [folder for folder in found if folder.name == f"VOC{year}"]
        if not found:
            raise FileNotFoundError(f"{root}: no VOC{year} with ImageSets/Main in it")
    if len(found) > 1:
        raise ValueError(f"{root}: year must choose one of {', '.join(folder.name for folder in found)}")
    return found[0] if found else None


def default_splits(root: str | Path, year: str | None = None) -> tuple[str | None, str | None]:
    """The names of the training and the test split of a set, where it has them: trainval and test, or the folders train
    and test."""
    devkit = find_devkit(Path(root), year)
    if devkit is None:
        train, test = ((name if (Path(root) / name).is_dir() else None) for name in ("train", "test"))
        return train, test
    lists = devkit / "ImageSets" / "Main"
    return "trainval", "test" if (lists / "test.txt").is_file() else None


def read_list(path: Path) -> list[str]:
    """The image ids of a list: the first word of each line that has one; any line ending, with or without a last
    newline.

    Raises:
        FileNotFoundError: no such list; names those that are there.
        ValueError: it is empty, or names an image twice.
        BrokenAnnotation: it is no UTF-8 text.
    """
    if not path.is_file():
        there = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.txt") if "_" not in entry.stem)) or "none"
        raise FileNotFoundError(f"{path}: no such list; lists there: {there}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BrokenAnnotation(f"{path}: no UTF-8 text: {error}") from error
    ids = [words[0] for words in map(str.split, lines) if words]
    if not ids:
        raise ValueError(f"{path}: the list names no image")
    if len(set(ids)) < len(ids):
        repeated = next(entry for position, entry in enumerate(ids) if entry in ids[:position])
        raise ValueError(f"{path}: image {repeated} is listed twice")
    return ids


def _devkit_entries(devkit: Path, split: str | None) -> list[tuple[str, Path, Path]]:
    """(id, annotation, image) of every line of a list."""
    if split is None:
        raise ValueError(f"{devkit}: split must name a list in ImageSets/Main, got None")
    ids = read_list(devkit / "ImageSets" / "Main" / f"{split}.txt")
    return [(entry, devkit / "Annotations" / f"{entry}.xml", devkit / "JPEGImages" / f"{entry}.jpg") for entry in ids]


def _flat_entries(root: Path, split: str | None) -> list[tuple[str, Path, Path]]:
    """(id, annotation, image) of every image or annotation of a folder, sorted; a partner that is missing is reported
    when it is read."""
    folder = root if split is None else root / split
    if not folder.is_dir():
        there = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())) or "none"
        raise FileNotFoundError(f"{folder}: no such folder; folders there: {there}")
    images: dict[str, Path] = {}
    annotations = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".xml":
            annotations[path.stem] = path
        elif path.suffix.lower() in EXTENSIONS:
            if path.stem in images:
                raise ValueError(
                    f"{path}: {images[path.stem].name} has the same name, and one annotation cannot serve both"
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


class _Presence:
    """What every annotation says, as :func:`read_annotation`: kept by an earlier run, or read now and kept."""

    def __init__(self, candidates: Sequence[tuple[str, Path, Path]], folder: str | Path | None) -> None:
        self._ids = [id for id, _, _ in candidates]
        self._cache = LabelCache(folder, {"kind": "voc"}, [annotation for _, annotation, _ in candidates])
        self._read: dict[str, dict[str, int]] = {}
        found = self._cache.load()
        self.kept = {} if found is None else dict(zip(found.rows, _named(found), strict=True))

    def of(self, id: str, annotation: Path) -> dict[str, int]:
        if id in self.kept:
            return self.kept[id]
        self._read[id] = read_annotation(annotation)
        return self._read[id]

    def keep(self) -> None:
        """Store them, once every annotation was read."""
        if len(self._read) == len(self._ids):
            names = sorted({name for present in self._read.values() for name in present})
            entries = [_Entry(id, Path(), self._read[id]) for id in self._ids]
            self._cache.store(_label_matrix(entries, names), names, self._ids)


def _named(found: CachedLabels) -> list[dict[str, int]]:
    """Each row's classes that are not absent, by name."""
    rows: list[dict[str, int]] = [{} for _ in found.rows]
    there = found.labels >= 0
    for (row, column), code in zip(there.nonzero().tolist(), found.labels[there].tolist(), strict=True):
        rows[row][found.class_names[column]] = code
    return rows


def _read(id: str, annotation: Path, image: Path, known: frozenset[str] | None, presence: _Presence) -> _Entry:
    if id not in presence.kept and not annotation.is_file():
        raise FileNotFoundError(f"{annotation}: no such annotation, for image {image.name}")
    if not image.is_file():
        raise FileNotFoundError(f"{image}: no such image, for annotation {annotation.name}")
    present = presence.of(id, annotation)
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
    """The classes that have a list of their own, ``cat_train.txt``, sorted."""
    names = (path.stem.rpartition("_") for path in (devkit / "ImageSets" / "Main").glob("*_*.txt"))
    return sorted({name for name, _, split in names if name and split in _LISTS})


def _first(skipped: Sequence[str]) -> str:
    return f"; the first left out: {skipped[0]}" if skipped else ""
