"""Image sets annotated in the COCO format: one JSON file of images, categories and annotations.

Labels are built from the JSON by image id, not from a separate label file whose rows could be in another order (D25).
Columns are the categories in the order of their ids, not alphabetical (D8). A class is present if any annotation of the
image has it. By default crowd annotations (iscrowd = 1) count, as in the published code (D26). ``unlabelled`` decides
about images without annotations: the published code keeps them, the paper's counts exclude them (702 + 367; D24).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast.data.base import FileDataset, OnError, Transform, check_distinct, read_all
from ssgrl_fast.data.errors import BrokenAnnotation, warn_of_label_cache


class CocoDetection(FileDataset):
    """The images of a COCO-format file with their image-level labels.

    Args:
        images: the folder that ``file_name`` is relative to.
        annotations: the JSON file.
        classes: all category names of the file, in column order. None: ordered by category id.
        crowd: the label of a class that an image has only in crowd annotations: ``"positive"`` 1, ``"ignore"`` 0 (like
            difficult objects) or ``"negative"`` -1.
        unlabelled: ``"keep"`` or ``"drop"`` images without any class (all labels -1); ``dropped`` counts them.
        transform: None: ``eval_transform()``.
        seed: seed of the random transform.
        on_error: ``"raise"``, or ``"skip"``: missing and broken image files are left out and listed in ``skipped``,
            with one warning (see FileDataset). An inconsistent JSON file always raises.
        label_cache: deprecated, without effect.

    Raises:
        FileNotFoundError: a folder, JSON file or image does not exist; the message names it.
        BrokenAnnotation: invalid JSON, a section or field missing or of the wrong type, an id used twice, or
            annotations of unknown categories or images; the message names the file and the ids.
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
    ) -> None:
        check_choice("CocoDetection", "unlabelled", unlabelled, ("keep", "drop"))
        warn_of_label_cache(label_cache)
        folder, path = Path(images), Path(annotations)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of images")
        labels, names, file_names = read_labels(path, classes=classes, crowd=crowd)
        labelled = (labels != -1).any(1).tolist()
        used = [row for row in range(len(file_names)) if unlabelled == "keep" or labelled[row]]
        self.dropped = len(file_names) - len(used)
        if not used:
            raise ValueError(
                f"{path}: no image to use: {len(file_names)} listed, {self.dropped} of them unlabelled and dropped"
            )
        rows, skipped = read_all(used, lambda row: _existing(folder, file_names[row], row, path), on_error)
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
        )


def read_labels(
    annotations: str | Path,
    *,
    classes: Sequence[str] | None = None,
    crowd: Literal["positive", "ignore", "negative"] = "positive",
) -> tuple[Tensor, list[str], list[str]]:
    """Image-level labels of every listed image, from the JSON only: labels int8 [M, C], C class names, M file names.

    Rows are in the order of the image ids. Arguments and errors as for CocoDetection, but image files are not read and
    need not exist.
    """
    check_choice("CocoDetection", "crowd", crowd, ("positive", "ignore", "negative"))
    path = Path(annotations)
    content = _load(path)
    columns = _columns(content["categories"], classes, path)
    names = list(classes) if classes is not None else [name for _, name in sorted((i, n) for i, n, _ in columns)]
    files = _files(content["images"], path)
    column_of = {identity: column for identity, _, column in columns}
    labels = _label_matrix(content["annotations"], list(files), column_of, crowd, path)
    return labels, names, list(files.values())


def count_objects(annotations: str | Path, *, classes: Sequence[str] | None = None) -> Tensor:
    """Count the annotations of each class in every listed image, int64 [M, C], rows in the order of the image ids.

    A crowd annotation counts as one. Arguments and errors as for :func:`read_labels`.
    """
    path = Path(annotations)
    content = _load(path)
    column_of = {identity: column for identity, _, column in _columns(content["categories"], classes, path)}
    row_of = {identity: row for row, identity in enumerate(_files(content["images"], path))}
    counts = torch.zeros(len(row_of), len(column_of), dtype=torch.int64)
    plain, crowded = _pairs(content["annotations"], row_of, column_of, path)
    for row, column in plain + crowded:
        counts[row, column] += 1
    return counts


def find_split(root: str | Path, split: str) -> tuple[Path, Path]:
    """The image folder and the JSON of a split in COCO's own layout: ``<split>/`` or ``images/<split>/``,
    ``annotations/instances_<split>.json``.

    Raises:
        FileNotFoundError: the folder or the JSON does not exist; the message names the expected paths and the available
            splits.
    """
    root = Path(root)
    annotations = root / "annotations" / f"instances_{split}.json"
    if not annotations.is_file():
        raise FileNotFoundError(
            f"{annotations}: no such file; available splits: {', '.join(list_splits(root)) or 'none'}"
        )
    folders = [root / split, root / "images" / split]
    for folder in folders:
        if folder.is_dir():
            return folder, annotations
    raise FileNotFoundError(f"{root}: no folder of images for split {split}; expected {folders[0]} or {folders[1]}")


def list_splits(root: str | Path) -> list[str]:
    """The splits that have an ``annotations/instances_<split>.json``, sorted."""
    return sorted(
        path.stem.removeprefix("instances_") for path in (Path(root) / "annotations").glob("instances_*.json")
    )


def default_splits(root: str | Path) -> tuple[str, str | None]:
    """The split whose name begins with "train", and the one that begins with "val", or None without one.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        ValueError: no training split, or several splits with one of these beginnings.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    splits = list_splits(root)
    train, test = ([name for name in splits if name.startswith(start)] for start in ("train", "val"))
    if len(train) != 1 or len(test) > 1:
        raise ValueError(
            f"{root}: the splits cannot be chosen by their names, pass them; available splits "
            f"(annotations/instances_<split>.json): {', '.join(splits) or 'none'}"
        )
    return train[0], test[0] if test else None


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The sections images, annotations and categories, each checked to be a list of JSON objects."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        content = _parse(path.read_bytes())
    except (ValueError, RecursionError) as error:
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


class _Sections(TypedDict, total=False):
    images: list[_Entry]
    annotations: list[_Entry]
    categories: list[_Entry]


def _parse(text: bytes) -> Any:
    """The content of a JSON text. msgspec skips what is not read, above all the outlines of objects: on 300 MB it takes
    about a twentieth of the time that json does, and a fifth of the memory."""
    try:
        import msgspec

        return msgspec.json.decode(text, type=_Sections)
    except (ImportError, ValueError):  # the json module takes what strict JSON excludes (NaN), and names other faults
        return json.loads(text)


def _field(entry: dict[str, Any], key: str, kind: type, section: str, path: Path) -> Any:
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BrokenAnnotation(f"{path}: {key!r} must be {kind.__name__} in every entry of {section!r}, got {value!r}")
    return value


def _columns(categories: list[dict[str, Any]], classes: Sequence[str] | None, path: Path) -> list[tuple[int, str, int]]:
    """(category id, name, column) of every category."""
    by_id: dict[int, str] = {}
    for entry in categories:
        identity, name = _field(entry, "id", int, "categories", path), _field(entry, "name", str, "categories", path)
        if identity in by_id or name in by_id.values():
            raise BrokenAnnotation(f"{path}: category {identity} ({name}) occurs twice, by its id or by its name")
        by_id[identity] = name
    if not by_id:
        raise BrokenAnnotation(f"{path}: no categories")
    order = [by_id[identity] for identity in sorted(by_id)]
    if classes is not None:
        check_distinct("classes", classes)
        if set(classes) != set(order):
            differing = sorted(set(classes) ^ set(order))
            raise ValueError(
                f"classes must be the categories of {path} in any order; "
                f"these names are in only one of the two: {differing}"
            )
        order = list(classes)
    return [(identity, name, order.index(name)) for identity, name in by_id.items()]


def _files(images: list[dict[str, Any]], path: Path) -> dict[int, str]:
    """Image id -> file name, in the order of the ids."""
    files: dict[int, str] = {}
    for entry in images:
        identity = _field(entry, "id", int, "images", path)
        if identity in files:
            raise BrokenAnnotation(f"{path}: image id {identity} occurs twice")
        files[identity] = _field(entry, "file_name", str, "images", path)
    return dict(sorted(files.items()))


def _label_matrix(
    annotations: list[dict[str, Any]], image_ids: list[int], column_of: dict[int, int], crowd: str, path: Path
) -> Tensor:
    """int8 [M, C], rows in the order of ``image_ids``."""
    row_of = {identity: row for row, identity in enumerate(image_ids)}
    plain, crowded = _pairs(annotations, row_of, column_of, path)
    labels = np.full((len(image_ids), len(column_of)), -1, dtype=np.int8)
    for pairs, code in ((crowded, {"positive": 1, "ignore": 0, "negative": -1}[crowd]), (plain, 1)):
        if pairs:
            rows, columns = np.array(pairs).T
            labels[rows, columns] = code
    return torch.from_numpy(labels)


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
            (crowded if entry.get("iscrowd", 0) else plain).append((row_of[image], column_of[category]))
    for key, ids in unknown.items():
        if ids:
            shown = ", ".join(map(str, sorted(ids)[:10])) + (", ..." if len(ids) > 10 else "")
            section = "categories" if key == "category_id" else "images"
            raise BrokenAnnotation(f"{path}: annotations with {key} {shown}, which {section!r} does not contain")
    return plain, crowded


def _existing(folder: Path, file_name: str, row: int, path: Path) -> int:
    """The row, if its image file exists."""
    if not (folder / file_name).is_file():
        raise FileNotFoundError(f"{folder / file_name}: no such image, listed in {path}")
    return row
