"""Image sets annotated in the COCO format: one JSON file of images, categories and annotations.

Labels are built from the JSON by image id, not from a separate label file whose rows could be in another order (D25).
Columns are the categories in the order of their ids, not alphabetical (D8). A class is present if any annotation of the
image has it. By default crowd annotations (iscrowd = 1) count, as in the published code (D26). ``unlabelled`` decides
about images without annotations: the published code keeps them, the paper's counts exclude them (702 + 367; D24).
"""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.data import coco_layout
from ssgrl_fast.data.base import FileDataset, OnError, Transform, check_distinct, read_all
from ssgrl_fast.data.boxes import ImageBoxes, ObjectBox, as_edges
from ssgrl_fast.data.coco_layout import default_splits, list_splits
from ssgrl_fast.data.errors import BrokenAnnotation, warn_of_label_cache
from ssgrl_fast.data.image_names import Borders
from ssgrl_fast.labels.matrix import alike_names

__all__ = ["CocoDetection", "count_objects", "default_splits", "find_split", "list_splits", "read_labels"]

RepeatedFiles = Literal["refuse", "merge"]
_log = logging.getLogger(__name__)


class CocoDetection(FileDataset):
    """The images of a COCO-format file with their image-level labels.

    Args:
        images: the folder that ``file_name`` is relative to.
        annotations: the JSON file.
        classes: category names of the file, in column order; only categories without annotations may be left out.
            None: all of them by id, but those that are the parents (``supercategory``) of others and have no annotation
            themselves, as Roboflow's category 0: they are left out, and a line in the log says so.
        crowd: the label of a class that an image has only in crowd annotations: ``"positive"`` 1, ``"ignore"`` 0 (like
            difficult objects) or ``"negative"`` -1.
        unlabelled: ``"keep"`` or ``"drop"`` images without any class (all labels -1); ``dropped`` counts them.
        transform: None: ``eval_transform()``.
        seed: seed of the random transform.
        repeated_files: one image file under several image ids: ``"refuse"``, or ``"merge"`` their annotations into one
            image, at the place of its lowest id.
        on_error: ``"raise"``, or ``"skip"``: missing and broken image files are left out and listed in ``skipped``,
            with one warning (see FileDataset). An inconsistent JSON file always raises.
        label_cache: deprecated, without effect.
        roots: folders that the image files must lie in; none: ``images``.
        allow_outside: read images outside these folders too.
        more: ``max_pixels`` of FileDataset.

    Raises:
        OutsideRoot: a ``file_name`` leads outside these folders, by ``..``, as an absolute path or by a symbolic link.
        FileNotFoundError: a folder, JSON file or image does not exist; the message names it.
        BrokenAnnotation: invalid JSON, a section or field missing or of the wrong type, an id used twice, one file
            under several ids, or annotations of unknown categories or images; the message names the file and the ids.
        ValueError: no image left, ``classes`` differs from the file's categories, or an unknown option.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        *,
        classes: Sequence[str] | None = None,
        crowd: Literal["positive", "ignore", "negative"] = "positive",
        unlabelled: Literal["keep", "drop"] = "keep",
        transform: Transform | None = None,
        seed: int = 0,
        on_error: OnError = "raise",
        label_cache: str | Path | None = None,
        repeated_files: RepeatedFiles = "refuse",
        roots: Sequence[str | Path] = (),
        allow_outside: bool = False,
        **more: int,
    ) -> None:
        check_choice("CocoDetection", "unlabelled", unlabelled, ("keep", "drop"))
        warn_of_label_cache(label_cache)
        folder, path = Path(images), Path(annotations)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of images")
        self._reading: dict[str, Any] = {"crowd": crowd, "repeated_files": repeated_files}
        labels, names, file_names = read_labels(path, classes=classes, **self._reading)
        labelled = (labels != -1).any(1).tolist()
        used = [row for row in range(len(file_names)) if unlabelled == "keep" or labelled[row]]
        self.dropped = len(file_names) - len(used)
        if not used:
            raise ValueError(
                f"{path}: no image to use: {len(file_names)} listed, {self.dropped} of them unlabelled and dropped"
            )
        borders = Borders(*(roots or [folder]), allow_outside=allow_outside)

        def existing(row: int) -> int:
            if not borders.check(os.path.join(folder, file_names[row]), str(path)).is_file():
                raise FileNotFoundError(f"{folder / file_names[row]}: no such image, listed in {path}")
            return row

        rows, skipped = read_all(used, existing, on_error)
        self.class_source = "argument classes" if classes is not None else f"categories of {path.name} by id"
        super().__init__(
            names,
            labels[rows],
            [file_names[row] for row in rows],
            [folder / file_names[row] for row in rows],
            skipped=skipped,
            on_error=on_error,
            transform=transform,
            seed=seed,
            **more,
        )
        self.annotations = dict.fromkeys(self.paths, path)

    def boxes(self) -> list[ImageBoxes]:
        files = {path: read_boxes(path, self.class_names, **self._reading) for path in set(self.annotations.values())}
        return [files[self.annotations[path]][name] for path, name in zip(self.paths, self.ids, strict=True)]


def read_labels(
    annotations: str | Path,
    *,
    classes: Sequence[str] | None = None,
    crowd: Literal["positive", "ignore", "negative"] = "positive",
    repeated_files: RepeatedFiles = "refuse",
) -> tuple[Tensor, list[str], list[str]]:
    """Image-level labels of every listed image, from the JSON only: labels int8 [M, C], C class names, M file names.

    Rows are in the order of the image ids. Arguments and errors as for CocoDetection, but image files are not read and
    need not exist.
    """
    check_choice("CocoDetection", "crowd", crowd, ("positive", "ignore", "negative"))
    check_choice("CocoDetection", "repeated_files", repeated_files, ("refuse", "merge"))
    path = Path(annotations)
    content = _load(path)
    names, column_of = _columns(content, classes, path)
    files, row_of = _files(content["images"], repeated_files, path)
    plain, crowded = _pairs(content["annotations"], row_of, column_of, path)
    labels = np.full((len(files), len(names)), -1, dtype=np.int8)
    for pairs, code in ((crowded, {"positive": 1, "ignore": 0, "negative": -1}[crowd]), (plain, 1)):
        if pairs:
            rows, columns = np.array(pairs).T
            labels[rows, columns] = code
    return torch.from_numpy(labels), names, files


def read_boxes(
    annotations: str | Path, classes: Sequence[str], *, crowd: str, repeated_files: RepeatedFiles
) -> dict[str, ImageBoxes]:
    """The boxes of every listed image by its file name, from ``bbox``: x, y, width, height.

    Arguments and errors as for :func:`read_labels`; a crowd counts as its label does, with ``"negative"`` not at all.

    Raises:
        BrokenAnnotation: also for a ``bbox`` that is not four finite numbers.
    """
    path = Path(annotations)
    content = _load(path, boxes=True)
    names, column_of = _columns(content, classes, path)
    files, row_of = _files(content["images"], repeated_files, path)
    _pairs(content["annotations"], row_of, column_of, path)  # checks the ids
    found = {name: ImageBoxes(None, []) for name in files}
    for entry in content["images"]:
        height, width = entry.get("height"), entry.get("width")
        if type(height) is int and type(width) is int and min(height, width) > 0:
            name = files[row_of[entry["id"]]]
            found[name] = found[name]._replace(size=(height, width))
    for entry in content["annotations"]:
        code = {"positive": 1, "ignore": 0, "negative": -1}[crowd] if _is_crowd(entry, path) else 1
        edges = None
        if (box := entry.get("bbox")) is not None:
            if (edges := as_edges(box)) is None:
                raise BrokenAnnotation(f"{path}: 'bbox' must be four numbers in every annotation, got {box!r}")
            left, top, width, height = edges
            edges = (top, left, top + height, left + width)
        if code != -1:
            box_of = ObjectBox(names[column_of[entry["category_id"]]], code, edges)
            found[files[row_of[entry["image_id"]]]].objects.append(box_of)
    return found


def count_objects(annotations: str | Path, *, classes: Sequence[str] | None = None) -> Tensor:
    """Count the annotations of each class in every listed image, int64 [M, C], rows in the order of the image ids.

    A crowd annotation counts as one. Arguments and errors as for :func:`read_labels`.
    """
    path = Path(annotations)
    content = _load(path)
    names, column_of = _columns(content, classes, path)
    files, row_of = _files(content["images"], "refuse", path)
    counts = torch.zeros(len(files), len(names), dtype=torch.int64)
    plain, crowded = _pairs(content["annotations"], row_of, column_of, path)
    for row, column in plain + crowded:
        counts[row, column] += 1
    return counts


def find_split(root: str | Path, split: str | None) -> tuple[Path, Path]:
    """The image folder and the JSON of a split; see :mod:`ssgrl_fast.data.coco_layout`.

    Args:
        root: the folder of the set, or a JSON file.
        split: name of a split, or a JSON file; None: the root itself.

    Raises:
        FileNotFoundError, ValueError: see :func:`ssgrl_fast.data.coco_layout.find_split`.
        BrokenAnnotation: the JSON is broken.
    """
    return coco_layout.find_split(root, split, _first_image)


def _first_image(path: Path) -> str | None:
    images = _load(path)["images"]
    return str(_field(images[0], "file_name", str, "images", path)) if images else None


def _load(path: Path, *, boxes: bool = False) -> dict[str, list[dict[str, Any]]]:
    """The sections images, annotations and categories, each checked to be a list of JSON objects."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        content = _parse(path.read_bytes(), _SectionsWithBoxes if boxes else _Sections)
    except ValueError as error:
        raise BrokenAnnotation(f"{path}: not valid JSON: {error}") from error
    for section in ("images", "annotations", "categories"):
        entries = content.get(section) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise BrokenAnnotation(f"{path}: {section!r} must be a list of objects")
    sections: dict[str, list[dict[str, Any]]] = content
    return sections


class _Entry(TypedDict, total=False):
    """What is read of an entry of any section."""

    id: Any
    name: Any
    file_name: Any
    image_id: Any
    category_id: Any
    iscrowd: Any
    supercategory: Any


class _Sections(TypedDict, total=False):
    images: list[_Entry]
    annotations: list[_Entry]
    categories: list[_Entry]


class _EntryWithBox(_Entry, total=False):
    bbox: Any
    height: Any
    width: Any


class _SectionsWithBoxes(TypedDict, total=False):
    images: list[_EntryWithBox]
    annotations: list[_EntryWithBox]
    categories: list[_Entry]


def _parse(text: bytes, sections: type) -> Any:
    """The content of a JSON text. msgspec skips what is not read, above all the outlines of objects: on 300 MB it takes
    about a twentieth of the time that json does, and a fifth of the memory."""
    try:
        import msgspec

        return msgspec.json.decode(text, type=sections)
    # the json module takes what strict JSON excludes (NaN), and names other faults
    except (ImportError, ValueError, RecursionError):
        return parse_json(text)


def _field(entry: dict[str, Any], key: str, kind: type, section: str, path: Path) -> Any:
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BrokenAnnotation(f"{path}: {key!r} must be {kind.__name__} in every entry of {section!r}, got {value!r}")
    return value


def _columns(
    content: dict[str, list[dict[str, Any]]], classes: Sequence[str] | None, path: Path
) -> tuple[list[str], dict[int, int]]:
    """The class names in column order, and the column of each category id."""
    by_id: dict[int, str] = {}
    annotated = {entry.get("category_id") for entry in content["annotations"] if type(entry.get("category_id")) is int}
    for entry in content["categories"]:
        identity, name = _field(entry, "id", int, "categories", path), _field(entry, "name", str, "categories", path)
        twin = next((id for id, other in by_id.items() if other == name), None)
        if identity in by_id or (twin is not None and (twin in annotated) == (identity in annotated)):
            raise BrokenAnnotation(f"{path}: category {identity} ({name}) occurs twice, by its id or by its name")
        by_id[identity] = name
        if twin is not None:
            bare = twin if identity in annotated else identity
            del by_id[bare]
            _log.warning("%s: category %d has no annotations and the name of another, %r: left out", path, bare, name)
    if not by_id:
        raise BrokenAnnotation(f"{path}: no categories")
    names = [by_id[identity] for identity in sorted(by_id)]
    if classes is None:
        bare = {name for identity, name in by_id.items() if identity not in annotated}
        names = _without_parents(names, bare, content["categories"], path)
    else:
        check_distinct("classes", classes)
        differing = set(classes) ^ set(names)
        differing -= {name for identity, name in by_id.items() if identity not in annotated and name not in classes}
        if differing:
            raise ValueError(
                f"classes must be the categories of {path} in any order, all but those without annotations; "
                f"these names are in only one of the two: {sorted(differing)}{alike_names(sorted(differing))}"
            )
        names = list(classes)
    column = {name: index for index, name in enumerate(names)}
    return names, {identity: column[name] for identity, name in by_id.items() if name in column}


def _without_parents(names: list[str], bare: set[str], categories: list[dict[str, Any]], path: Path) -> list[str]:
    """The names without those of ``bare``, which have no annotation, that are the supercategory of another."""
    named = ((entry.get("supercategory"), entry["name"]) for entry in categories)
    above = {parent for parent, name in named if isinstance(parent, str) and parent != name}
    parents = [name for name in names if name in bare and name in above]
    if not parents or len(parents) == len(names):
        return names
    _log.warning(
        "%s: not a class: %s, without annotations and %s other categories; name all classes to keep it",
        path,
        ", ".join(map(repr, parents)),
        "the supercategory of" if len(parents) == 1 else "each the supercategory of",
    )
    return [name for name in names if name not in parents]


def _files(images: list[dict[str, Any]], repeated_files: RepeatedFiles, path: Path) -> tuple[list[str], dict[int, int]]:
    """The file names in the order of their ids, and the row of each image id."""
    by_id: dict[int, str] = {}
    for entry in images:
        identity = _field(entry, "id", int, "images", path)
        if identity in by_id:
            raise BrokenAnnotation(f"{path}: image id {identity} occurs twice")
        by_id[identity] = _field(entry, "file_name", str, "images", path)
    files: list[str] = []
    row_of: dict[int, int] = {}
    first: dict[str, int] = {}  # image id by the file's path in its shortest form
    for identity, name in sorted(by_id.items()):
        earlier = first.setdefault(posixpath.normpath(name), identity)
        if earlier == identity:
            row_of[identity] = len(files)
            files.append(name)
        elif repeated_files == "merge":
            row_of[identity] = row_of[earlier]
        else:
            raise BrokenAnnotation(
                f"{path}: the file {name} is listed under the image ids {earlier} and {identity}; "
                'repeated_files="merge" (--data.repeated_files merge) unites their annotations'
            )
    return files, row_of


def _pairs(
    annotations: list[dict[str, Any]], row_of: dict[int, int], column_of: dict[int, int], path: Path
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(row, column) of every ordinary and of every crowd annotation; unknown image or category ids are an error."""
    plain: list[tuple[int, int]] = []
    crowded: list[tuple[int, int]] = []
    unknown: dict[str, set[int]] = {"category_id": set(), "image_id": set()}
    for entry in annotations:
        image = _field(entry, "image_id", int, "annotations", path)
        category = _field(entry, "category_id", int, "annotations", path)
        if category not in column_of:
            unknown["category_id"].add(category)
        elif image not in row_of:
            unknown["image_id"].add(image)
        else:
            (crowded if _is_crowd(entry, path) else plain).append((row_of[image], column_of[category]))
    for key, ids in unknown.items():
        if ids:
            shown = ", ".join(map(str, sorted(ids)[:10])) + (", ..." if len(ids) > 10 else "")
            section = "categories" if key == "category_id" else "images"
            raise BrokenAnnotation(f"{path}: annotations with {key} {shown}, which {section!r} does not contain")
    return plain, crowded


def _is_crowd(entry: dict[str, Any], path: Path) -> bool:
    value = entry.get("iscrowd")
    if value is None or value == 0 or value == "0":
        return False
    if value == 1 or value == "1":
        return True
    raise BrokenAnnotation(f"{path}: 'iscrowd' must be 0 or 1 in every entry of 'annotations', got {value!r}")
