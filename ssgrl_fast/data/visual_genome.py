"""VG-500, the paper's largest set (4.1): Visual Genome's 500 most frequent object names, as a table of labels.

Two sources: Visual Genome's own ``objects.json``, or the lists and the label file that go with the published code,
where a user has them. Either way the result is ``labels.csv`` and ``classes.txt`` in the folder that holds the images,
read by :mod:`ssgrl_fast.data.table`. The paper counts 98,249 training and 10,000 test images drawn at random; the
published lists hold 82,904 and 10,000 (D31), and class names are published nowhere (D30).
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssgrl_fast._utils.files import replacing
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.images import EXTENSIONS
from ssgrl_fast.data.voc import read_list

__all__ = ["FOLDERS", "build_from_objects", "convert_published"]

FOLDERS = ("VG_100K", "VG_100K_2")
"""The two folders that Visual Genome's images come in."""


def build_from_objects(
    objects: str | Path, root: str | Path, *, classes: int = 500, test_images: int = 10_000, seed: int = 0
) -> dict[str, int]:
    """Write ``labels.csv`` and ``classes.txt`` from Visual Genome's objects.

    A name is an object's first, in small letters and single spaces. The classes are the names found in most images, the
    most frequent first, equal counts by alphabet. Images without any of them stay, unlabelled. The test images are
    drawn from all images in the order of their ids.

    Args:
        objects: ``objects.json``: a list of {"image_id", "objects": [{"names": [...]}, ...]}.
        root: the folder that holds VG_100K and VG_100K_2, or the images themselves; the files are written there.
        classes: C.
        test_images: how many are set aside.
        seed: of the draw.

    Returns:
        How many images are for ``train`` and ``test``, how many ``unlabelled`` and how many ``missing``: listed in the
        objects without a file, and left out.

    Raises:
        FileNotFoundError: no such file or folder, or no image at all.
        BrokenAnnotation: objects.json is no such list; names the entry.
        ValueError: fewer names or images than asked for.
    """
    folder, found = Path(root), _objects(Path(objects))
    places = _images(folder)
    present = {identity: names for identity, names in sorted(found.items()) if str(identity) in places}
    if not present:
        raise FileNotFoundError(f"{folder}: none of the {len(found)} images of {objects} is there")
    counts = Counter(name for names in present.values() for name in names)
    order = sorted(counts, key=lambda name: (-counts[name], name))
    if len(order) < classes:
        raise ValueError(
            f"{objects}: {len(order)} names in the images that are there, {classes} classes were asked for"
        )
    if not 0 <= test_images < len(present):
        raise ValueError(f"test_images must be from 0 to {len(present) - 1}, the images less one, got {test_images}")
    kept = order[:classes]
    drawn = np.random.default_rng(seed).permutation(len(present))[:test_images]
    test = {
        identity for identity, chosen in zip(present, np.isin(np.arange(len(present)), drawn), strict=True) if chosen
    }
    rows = [
        (places[str(identity)], [name for name in kept if name in names], "test" if identity in test else "train")
        for identity, names in present.items()
    ]
    return {**_write(folder, kept, rows), "missing": len(found) - len(present)}


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
        labels: JSON, image file name to the list of its classes' indices.
        lists: a list of image file names for each split, ``{"train": ..., "test": ...}``; Windows lines and a missing
            last newline lose nothing (D28).
        root: as for :func:`build_from_objects`.
        classes: C.
        class_names: C names; None: ``class 0``, …, as none are published (D30).

    Returns:
        As :func:`build_from_objects`.

    Raises:
        FileNotFoundError: no such file or folder, or no listed image is there.
        BrokenAnnotation: no such JSON, an index outside 0 .. C-1, a listed image without an entry, or one that two
            lists or two lines hold.
        ValueError: another number of names than C.
    """
    folder, path = Path(root), Path(labels)
    names = [f"class {index}" for index in range(classes)] if class_names is None else list(class_names)
    if len(names) != classes:
        raise ValueError(f"class_names must be {classes} names, got {len(names)}")
    indices, places = _json(path, dict), _images(folder)
    seen: dict[str, str] = {}
    rows, missing = [], 0
    for split, source in lists.items():
        for name in read_list(Path(source)):
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
        raise FileNotFoundError(f"{folder}: none of the {missing} listed images is there")
    return {**_write(folder, names, rows), "missing": missing}


def _objects(path: Path) -> dict[int, set[str]]:
    """Image id -> the names of its objects."""
    found: dict[int, set[str]] = {}
    for position, entry in enumerate(_json(path, list)):
        try:
            names = {" ".join(item["names"][0].lower().split()) for item in entry["objects"] if item["names"]}
            identity = int(entry["image_id"])
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise BrokenAnnotation(
                f"{path}: entry {position} must have 'image_id' and 'objects' with 'names' ({error!r})"
            ) from error
        if identity in found:
            raise BrokenAnnotation(f"{path}: image {identity} is there twice")
        found[identity] = names - {""}
    return found


def _json(path: Path, kind: type) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise BrokenAnnotation(f"{path}: no readable JSON: {error}") from error
    if not isinstance(content, kind):
        raise BrokenAnnotation(f"{path}: a {kind.__name__} is expected, got a {type(content).__name__}")
    return content


def _images(root: Path) -> dict[str, str]:
    """Image id -> file relative to root, in both of Visual Genome's folders or in root itself.

    Raises:
        FileNotFoundError: no such folder.
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
    """The two files, each beside its place first; the counts of a report."""
    if bad := next((name for name in names if ";" in name or "\n" in name), None):
        raise BrokenAnnotation(f"class {bad!r} holds a semicolon or a line's end, which a table cannot")
    with replacing(root / "labels.csv") as table_part, replacing(root / "classes.txt") as names_part:
        names_part.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        with table_part.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("file", "labels", "split"))
            table.writerows((place, ";".join(labels), split) for place, labels, split in rows)
    splits = Counter(split for _, _, split in rows)
    return {**splits, "unlabelled": sum(not labels for _, labels, _ in rows)}
