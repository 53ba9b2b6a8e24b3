"""VG-500, the paper's largest data set (section 4.1): Visual Genome's 500 most frequent object names, as a label table.

Two sources are supported: Visual Genome's own ``objects.json``, or the split lists and the label file of the published
code. In both cases the result is ``labels.csv`` and ``classes.txt`` in the folder of the images, which
:mod:`ssgrl_fast.data.table` reads. The paper has 98,249 training and 10,000 test images drawn at random; the published
lists have 82,904 and 10,000 (D31). The class names are not published (D30).
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssgrl_fast._utils.files import replacing
from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.images import EXTENSIONS
from ssgrl_fast.data.voc import read_list

__all__ = ["FOLDERS", "build_from_objects", "convert_published"]

FOLDERS = ("VG_100K", "VG_100K_2")
"""The two folders of Visual Genome's images."""


def build_from_objects(
    objects: str | Path, root: str | Path, *, classes: int = 500, test_images: int = 10_000, seed: int = 0
) -> dict[str, int]:
    """Write ``labels.csv`` and ``classes.txt`` from Visual Genome's objects.

    The name of an object is its first name, in lower case with single spaces. The classes are the names that occur in
    the most images, most frequent first, ties in alphabetical order. Images without any of the classes are kept,
    without labels. The test images are drawn from all images, ordered by id.

    Args:
        objects: ``objects.json``: a list of {"image_id", "objects": [{"names": [...]}, ...]}.
        root: the folder with VG_100K and VG_100K_2, or with the images themselves; the files are written there.
        classes: number of classes C.
        test_images: number of test images.
        seed: seed of the random draw.

    Returns:
        The number of images in ``train`` and in ``test``, without labels (``unlabelled``), and listed in the objects
        but without a file (``missing``); the last are left out.

    Raises:
        FileNotFoundError: the file or folder does not exist, or no listed image does.
        BrokenAnnotation: objects.json does not have the format above; the message names the entry.
        ValueError: fewer names than ``classes``, or not more images than ``test_images``.
    """
    # the names in each image that has a file
    folder, names_of = Path(root), _objects(Path(objects))
    places = _images(folder)
    present = {identity: names for identity, names in sorted(names_of.items()) if str(identity) in places}
    if not present:
        raise FileNotFoundError(f"{folder}: none of the {len(names_of)} images of {objects} exists")
    # the most frequent names
    counts = Counter(name for names in present.values() for name in names)
    order = sorted(counts, key=lambda name: (-counts[name], name))
    if len(order) < classes:
        raise ValueError(
            f"{objects}: the existing images have {len(order)} distinct names, fewer than classes = {classes}"
        )
    if not 0 <= test_images < len(present):
        raise ValueError(
            f"test_images must be from 0 to {len(present) - 1}, the number of images - 1, got {test_images}"
        )
    kept = order[:classes]
    # the test images, and the table
    drawn = np.random.default_rng(seed).permutation(len(present))[:test_images]
    test = {
        identity for identity, chosen in zip(present, np.isin(np.arange(len(present)), drawn), strict=True) if chosen
    }
    rows = [
        (places[str(identity)], [name for name in kept if name in names], "test" if identity in test else "train")
        for identity, names in present.items()
    ]
    return {**_write(folder, kept, rows), "missing": len(names_of) - len(present)}


def convert_published(
    labels: str | Path,
    lists: Mapping[str, str | Path],
    root: str | Path,
    *,
    classes: int = 500,
    class_names: Sequence[str] | None = None,
) -> dict[str, int]:
    """Write ``labels.csv`` and ``classes.txt`` from the files of the published code.

    Args:
        labels: JSON file: image file name -> list of class indices.
        lists: a text file of image file names for each split, ``{"train": ..., "test": ...}``, with any line ending;
            the last newline is optional (D28).
        root: as for :func:`build_from_objects`.
        classes: number of classes C.
        class_names: C names; None: ``class 0``, ``class 1``, …, because no names are published (D30).

    Returns:
        As :func:`build_from_objects`.

    Raises:
        FileNotFoundError: a file or folder, or every listed image, does not exist.
        BrokenAnnotation: invalid JSON, an index outside 0 .. C-1, a listed image without an entry, or an image listed
            twice.
        ValueError: the number of names is not C.
    """
    folder, path = Path(root), Path(labels)
    names = [f"class {index}" for index in range(classes)] if class_names is None else list(class_names)
    if len(names) != classes:
        raise ValueError(f"class_names must have {classes} names, got {len(names)}")
    indices, places = _json(path, dict), _images(folder)
    # one row per listed image: its file, class names and split
    seen: dict[str, str] = {}
    rows, missing = [], 0
    for split, source in lists.items():
        for name in read_list(Path(source), known=indices.__contains__):
            if name in seen:
                raise BrokenAnnotation(f"{source}: {name} is listed twice, in {seen[name]} and in {split}")
            seen[name] = split
            if name not in indices:
                raise BrokenAnnotation(f"{path}: no entry for {name}, which {source} lists")
            wrong = [index for index in indices[name] if not isinstance(index, int) or not 0 <= index < classes]
            if wrong:
                raise BrokenAnnotation(f"{path}: {name} has class {wrong[0]!r}, expected 0 .. {classes - 1}")
            if (place := places.get(Path(name).stem)) is None:
                missing += 1
                continue
            rows.append((place, [names[index] for index in sorted(set(indices[name]))], split))
    if not rows:
        raise FileNotFoundError(f"{folder}: none of the {missing} listed images exists")
    return {**_write(folder, names, rows), "missing": missing}


def _objects(path: Path) -> dict[int, set[str]]:
    """Image id -> the names of its objects."""
    names_of: dict[int, set[str]] = {}
    for position, entry in enumerate(_json(path, list)):
        try:
            names = {" ".join(item["names"][0].lower().split()) for item in entry["objects"] if item["names"]}
            identity = int(entry["image_id"])
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise BrokenAnnotation(
                f"{path}: entry {position} must have 'image_id' and 'objects' with 'names' ({error!r})"
            ) from error
        if identity in names_of:
            raise BrokenAnnotation(f"{path}: image {identity} occurs twice")
        names_of[identity] = names - {""}
    return names_of


def _json(path: Path, kind: type) -> Any:
    """The content of a JSON file, whose top level must be of type ``kind``."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise BrokenAnnotation(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, kind):
        raise BrokenAnnotation(f"{path}: the top level must be a {kind.__name__}, got a {type(content).__name__}")
    return content


def _images(root: Path) -> dict[str, str]:
    """Image id -> file name relative to root, from both of Visual Genome's folders or from root itself.

    Raises:
        FileNotFoundError: ``root`` does not exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    inner = [name for name in FOLDERS if (root / name).is_dir()] or [""]
    places: dict[str, str] = {}
    for name in inner:
        for file in sorted(os.listdir(root / name)):
            stem, dot, extension = file.rpartition(".")
            if dot and f".{extension.lower()}" in EXTENSIONS:
                places.setdefault(stem, f"{name}/{file}" if name else file)
    return places


def _write(root: Path, names: Sequence[str], rows: Sequence[tuple[str, list[str], str]]) -> dict[str, int]:
    """Write labels.csv and classes.txt, each replaced atomically. Returns the counts per split and ``unlabelled``."""
    if bad := next((name for name in names if ";" in name or "\n" in name), None):
        raise BrokenAnnotation(
            f"class {bad!r} contains a semicolon or a line break, which the table format does not allow"
        )
    with replacing(root / "labels.csv") as table_part, replacing(root / "classes.txt") as names_part:
        names_part.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        with table_part.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("file", "labels", "split"))
            table.writerows((place, ";".join(labels), split) for place, labels, split in rows)
    splits = Counter(split for _, _, split in rows)
    return {**splits, "unlabelled": sum(not labels for _, labels, _ in rows)}
