"""Image sets annotated in the Pascal VOC format: one XML file per image, with the class name and the
"difficult" flag of each object.

Two folder layouts are supported:

| | devkit | flat |
|---|---|---|
| images | ``JPEGImages/<id>.jpg``, or another extension | ``<split>/<name>.jpg``, or another extension |
| annotations | ``Annotations/<id>.xml`` | ``<split>/<name>.xml``, beside the image |
| splits | lists ``ImageSets/Main/<split>.txt`` | sub-folders, or the folder itself |

The label of a class is 1 if the image has a non-difficult object of it, 0 if all its objects are difficult, and -1 if
it has none; a missing <difficult> means not difficult (D27, D28). The loss and the metrics decide how label 0 counts.

A devkit without any XML in ``Annotations`` but with per-class lists ``ImageSets/Main/<class>_<split>.txt`` (an image
and 1, 0 or -1 per line) has its labels there; a line in the log says so. 0 means only difficult objects, or what
``coding`` says.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ssgrl_fast._utils.checks import some
from ssgrl_fast.data.base import FileDataset, OnError, Transform, check_distinct, read_all
from ssgrl_fast.data.boxes import ImageBoxes
from ssgrl_fast.data.errors import BrokenAnnotation, warn_of_label_cache
from ssgrl_fast.data.image_names import Borders, ImageNames
from ssgrl_fast.data.images import is_image_name, passed_over_text
from ssgrl_fast.data.lists import read_label_list, read_list
from ssgrl_fast.data.voc_xml import read_annotation, read_boxes, read_objects
from ssgrl_fast.labels.codings import CODINGS, Coding, read_coding
from ssgrl_fast.labels.matrix import alike_names

__all__ = ["PascalVOC", "count_objects", "default_splits", "find_devkit", "read_annotation", "read_list"]
__all__ += ["read_objects"]

_LISTS = ("train", "val", "trainval", "test")
_log = logging.getLogger(__name__)


class _Candidate(NamedTuple):
    """One image of a split whose files were not looked at."""

    id: str
    annotation: Path
    find_image: Callable[[], Path]
    listed: str  # where it is listed, the end of a message


class _Entry(NamedTuple):
    """One image of a split with its labels."""

    id: str
    image: Path
    present: dict[str, int]  # class name -> its code; absent classes may be left out
    annotation: Path | None = None


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
        coding: what 1, 0 and -1 mean in per-class lists that hold the labels (:mod:`ssgrl_fast.labels.codings`); None:
            "voc".
        label_cache: deprecated, without effect.
        allow_outside: read files outside ``root`` too that a list names or a symbolic link leads to.
        more: ``max_pixels`` of FileDataset.

    Raises:
        OutsideRoot: one of them lies outside ``root``.
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
        coding: str | None = None,
        label_cache: str | Path | None = None,
        allow_outside: bool = False,
        **more: int,
    ) -> None:
        # class names: the argument, the devkit's per-class lists, or (below) the annotations
        warn_of_label_cache(label_cache)
        root = Path(root)
        devkit = find_devkit(root, year)
        self.class_source = "argument classes"
        if classes is None and devkit is not None and (listed := _listed_classes(devkit)):
            classes, self.class_source = listed, f"per-class lists in {_lists(devkit)}, sorted"
        if classes is not None:
            check_distinct("classes", classes)
        known = None if classes is None else frozenset(classes)
        # labels of every entry, from its annotation or from the per-class lists
        borders = Borders(root, allow_outside=allow_outside)
        candidates = _candidates(root, devkit, split, borders)
        if devkit is not None and _only_lists(devkit, split):
            presence = _listed_labels(devkit, str(split), classes, read_coding(coding or "voc"), borders)
            self.class_source = f"the {len(classes or ())} per-class lists that hold the labels, in {_lists(devkit)}"
            _log.warning("%s: no annotations (Annotations/*.xml); labels are those of %s", devkit, self.class_source)
            entries, skipped = read_all(
                candidates, lambda each: _Entry(each.id, each.find_image(), presence[each.id]), on_error
            )
        elif coding is not None:
            raise ValueError(f"{root}: coding is for per-class lists without annotations; the labels here are in XML")
        else:
            entries, skipped = read_all(candidates, lambda each: _read(each, known), on_error)
        if classes is None:
            classes = sorted({name for entry in entries for name in entry.present})
            self.class_source = f"names in {len(entries)} annotations, sorted"
            if not classes:
                where = root if split is None else root / split
                raise ValueError(
                    f"{where}: no class names: none of {len(candidates)} annotations is readable and has a named object"
                    f"{f'; first error: {skipped[0]}' if skipped else ''}"
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
            **more,
        )
        self.annotations = {entry.image: entry.annotation for entry in entries if entry.annotation is not None}

    def boxes(self) -> list[ImageBoxes]:
        if not self.annotations:
            raise ValueError("boxes: the labels are those of per-class lists, and lists have no boxes")
        return [read_boxes(self.annotations[path]) for path in self.paths]


def count_objects(
    root: str | Path, split: str | None, classes: Sequence[str], *, year: str | None = None, allow_outside: bool = False
) -> Tensor:
    """Count the non-difficult objects of each class in every image of a split, int64 [M, C].

    Arguments and errors as for PascalVOC. An object whose class is not in ``classes`` is an error. Image files are not
    read and need not exist.
    """
    check_distinct("classes", classes)
    devkit = find_devkit(Path(root), year)
    if devkit is not None and _only_lists(devkit, split):
        raise FileNotFoundError(f"{devkit}: no annotations (Annotations/*.xml), and per-class lists count no objects")
    entries = _candidates(Path(root), devkit, split, Borders(root, allow_outside=allow_outside))
    column = {name: index for index, name in enumerate(classes)}
    counts = torch.zeros(len(entries), len(classes), dtype=torch.int64)
    for row, candidate in enumerate(entries):
        annotation = candidate.annotation
        for name, difficult in read_objects(annotation):
            if name not in column:
                raise BrokenAnnotation(f"{annotation}: unknown class {name}, expected one of {', '.join(classes)}")
            counts[row, column[name]] += not difficult
    return counts


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
    tested = any(_lists(devkit).glob("test.txt")) or (_only_lists(devkit, "test"))
    return "trainval", "test" if tested else None


# ---- images of a split -----------------------------------------------------------------------------------------------


def _lists(devkit: Path) -> Path:
    return devkit / "ImageSets" / "Main"


def _candidates(root: Path, devkit: Path | None, split: str | None, borders: Borders) -> list[_Candidate]:
    """Every image of a split, its annotation within the borders."""
    found = _flat_candidates(root, split, borders) if devkit is None else _devkit_candidates(devkit, split, borders)
    for each in found:
        borders.check(each.annotation, each.listed.removeprefix(", ") or str(root))
    return found


def _devkit_candidates(devkit: Path, split: str | None, borders: Borders) -> list[_Candidate]:
    """Every image of a list."""
    if split is None:
        raise ValueError(f"{devkit}: split must name a list in ImageSets/Main, got None")
    known, images = _known_names(devkit), ImageNames(devkit / "JPEGImages", borders)
    path = borders.check(_lists(devkit) / f"{split}.txt", f"split {split}")
    if not path.is_file() and _only_lists(devkit, split):
        path = sorted(_lists(devkit).glob(f"*_{glob.escape(split)}.txt"))[0]  # all of them name the same images
        ids = list(read_label_list(path, known))
    else:
        ids = read_list(path, known)
    listed = f", listed in {path}"

    def candidate(id: str) -> _Candidate:
        annotation = devkit / "Annotations" / f"{id}.xml"
        return _Candidate(id, annotation, lambda: _find_image(images, id, annotation, listed), listed)

    return [candidate(id) for id in ids]


def _known_names(devkit: Path) -> Callable[[str], bool]:
    """Whether a devkit has an annotation or an image of a name."""
    folders = [devkit / name for name in ("Annotations", "JPEGImages")]
    stems = {
        os.path.splitext(file)[0]
        for folder in folders
        if folder.is_dir()
        for file in os.listdir(folder)
        if file.lower().endswith(".xml") or is_image_name(Path(file))
    }
    return lambda name: name in stems or ("/" in name and (folders[0] / f"{name}.xml").is_file())


def _flat_candidates(root: Path, split: str | None, borders: Borders) -> list[_Candidate]:
    """Every image or annotation of a folder, sorted. A missing image or annotation is reported when the entry is
    read."""
    folder = root if split is None else root / split
    if not folder.is_dir():
        folders = ", ".join(sorted(entry.name for entry in root.iterdir() if entry.is_dir())) or "none"
        raise FileNotFoundError(f"{folder}: no such folder; available folders: {folders}")
    images: dict[str, Path] = {}
    annotations: dict[str, Path] = {}
    others: list[Path] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):  # such as macOS's ._name.xml
            continue
        if path.suffix.lower() == ".xml":
            if path.stem in annotations:
                raise ValueError(f"{path}: {annotations[path.stem].name} is of the same image")
            annotations[path.stem] = path
        elif is_image_name(path):
            if path.stem in images:
                raise ValueError(
                    f"{path}: {images[path.stem].name} has the same name, so the annotation would belong to both"
                )
            images[path.stem] = path
        elif path.is_file():
            others.append(path)
    if others:
        _log.warning("%s: %s", folder, passed_over_text(others))
    stems = sorted({*images, *annotations})
    if not stems:
        raise ValueError(f"{folder}: no images with .xml annotations in this folder")

    def candidate(stem: str) -> _Candidate:
        annotation = annotations.get(stem, folder / f"{stem}.xml")
        if stem in images:
            return _Candidate(images[stem].name, annotation, lambda: borders.check(images[stem], str(folder)), "")
        names = ImageNames(folder, borders)
        return _Candidate(stem, annotation, lambda: _find_image(names, stem, annotation, ""), "")

    return [candidate(stem) for stem in stems]


def _find_image(images: ImageNames, name: str, annotation: Path, listed: str) -> Path:
    usual = images.folder / f"{name}.jpg"  # Pascal VOC's own format goes before others of the same name
    if images.borders.check(usual, annotation.name).is_file():
        return usual
    try:
        return images.find(name, annotation.name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{images.folder / name}.jpg: no such image, for annotation {annotation.name}, nor with another "
            f"extension{listed}"
        ) from error


def _read(candidate: _Candidate, known: frozenset[str] | None) -> _Entry:
    """The labels of a candidate from its annotation."""
    id, annotation, find_image, listed = candidate
    if not annotation.is_file():
        raise FileNotFoundError(f"{annotation}: no such annotation, for image {id}{listed}")
    image, present = find_image(), read_annotation(annotation)
    if known is not None and (unknown := sorted(set(present) - known)):
        raise BrokenAnnotation(
            f"{annotation}: unknown class {', '.join(unknown)}, expected one of {', '.join(sorted(known))}"
            f"{alike_names(unknown, sorted(known))}"
        )
    return _Entry(id, image, present, annotation)


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


def _only_lists(devkit: Path, split: str | None) -> bool:
    """Whether a devkit has per-class lists of this split, and no annotation that could say more."""
    annotated = any((devkit / "Annotations").rglob("*.xml"))
    return not annotated and split is not None and any(_lists(devkit).glob(f"*_{glob.escape(split)}.txt"))


def _listed_labels(
    devkit: Path, split: str, classes: Sequence[str] | None, coding: Coding, borders: Borders
) -> dict[str, dict[str, int]]:
    """Image id -> labels by class, from the lists ``<class>_<split>.txt``.

    Raises:
        FileNotFoundError: a class has no list of this split.
        BrokenAnnotation: a line without a label, a sign that the coding lacks, or lists of different images.
        ValueError: the lists are of other classes than ``classes``.
    """
    known, columns = _known_names(devkit), _listed_classes(devkit)
    if classes is not None and set(classes) != set(columns):
        differing = ", ".join(sorted(set(classes) ^ set(columns)))
        raise ValueError(
            f"classes must be those of the per-class lists in {_lists(devkit)} in any order; only in one of the two: "
            f"{differing}"
        )
    presence = {candidate.id: dict[str, int]() for candidate in _devkit_candidates(devkit, split, borders)}
    named = (_lists(devkit) / f"{split}.txt").is_file()  # it may name a part of the images that the others do
    signs: set[int] = set()
    for name in columns:
        path = borders.check(_lists(devkit) / f"{name}_{split}.txt", f"class {name}")
        labels = read_label_list(path, known)
        others = set(presence) - set(labels) if named else set(presence) ^ set(labels)
        if others:
            raise BrokenAnnotation(
                f"{path}: not the same images as the other lists of {split}: {some(sorted(others))} only in one"
            )
        signs |= set(labels.values())
        if refused := [id for id, sign in labels.items() if str(sign) not in coding.codes]:
            raise BrokenAnnotation(
                f"{path}: {labels[refused[0]]} for {refused[0]}, which coding {coding} does not have"
            )
        for id, sign in labels.items():
            if id in presence:
                presence[id][name] = coding.codes[str(sign)]
    if signs == {0, 1} and coding is CODINGS["voc"]:
        _log.warning(
            "%s: no -1 in the lists of %s; 0 is read as only difficult objects, as VOC has it; --data.coding zero-one "
            "(graph: --coding) reads it as absent",
            _lists(devkit),
            split,
        )
    return presence
