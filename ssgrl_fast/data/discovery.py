"""Finds out what a folder or file of somebody's own photographs is, and gives the data options that read it."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.files import replacing
from ssgrl_fast._utils.text import is_utf8
from ssgrl_fast.data import coco_layout, open_images, table, tar_shards, voc
from ssgrl_fast.data.images import is_image_name
from ssgrl_fast.data.sources import is_shard
from ssgrl_fast.data.split_words import role_of
from ssgrl_fast.data.splits import split_names
from ssgrl_fast.data.table_file import CONTROL

__all__ = ["FOLDERS", "discover", "write_folder_table"]

FOLDERS = "folders"
"""Kind of a set with one folder of images per class, which :func:`write_folder_table` makes a table of."""
_WANTED = (
    "a folder in Pascal VOC format (an .xml beside each image, or a devkit), in COCO format, with Open Images' tables, "
    "with one table of files and labels (.csv, .tsv, .parquet), with tar shards, or with one folder of images per "
    "class; or the table, .tar or .json file itself"
)


def discover(place: str | Path, kind: str | None = None) -> dict[str, Any]:
    """The options of a data module for what lies in a folder or file: kind, root, and which images are for what.

    Without a test split a fifth of the images is set aside as one (fold 0 of 5). A split for validation is used where
    there is also one for testing, otherwise it is the test split; without one a fifth of the training images is held
    out.

    Args:
        place: the folder, or a table (.csv, .tsv, .parquet), a shard (.tar) or COCO annotations (.json).
        kind: "voc", "coco", "csv", "openimages", "shards" or "folders" where it holds several; None: the only one
            there.

    Raises:
        FileNotFoundError: no such place.
        ValueError: none of the kinds, or several; the message says which.
    """
    path = Path(place)
    if not path.exists():
        raise FileNotFoundError(f"{place}: no such folder or file; needed is {_WANTED}")
    found = _in_folder(path) if path.is_dir() else _file(path)
    if kind is not None:
        found = {"shards": path} if kind == "shards" else {name: at for name, at in found.items() if name == kind}
    if len(found) > 1:
        raise ValueError(f"{place}: this may be meant as {' or as '.join(found)}: choose one with --kind")
    if not found:
        missing = f"nothing of kind {kind}" if kind else "no known data set"
        raise ValueError(f"{place}: {missing} here, {_seen(path)}; needed is {_WANTED}")
    (name, root), *_ = found.items()
    options: dict[str, Any] = {"kind": name, "root": str(root.resolve()), "on_error": "skip"}
    return options if name == FOLDERS else {**options, **_splits(name, root)}


def _file(path: Path) -> dict[str, Path]:
    kind = {".csv": "csv", ".tsv": "csv", ".parquet": "csv", ".json": "coco", ".tar": "shards"}.get(path.suffix.lower())
    return {} if kind is None else {kind: path}


def _in_folder(root: Path) -> dict[str, Path]:
    """Kind to root of everything that a folder may be; one folder per class only where it is nothing else."""
    found: dict[str, Path] = {}
    if voc.find_devkit(root) is not None or any(_files(root, ".xml")):
        found["voc"] = root
    if coco_layout.list_splits(root) or (root / "_annotations.coco.json").is_file():
        found["coco"] = root
    tables = [path for path in _inside(root) if path.suffix.lower() in (".csv", ".tsv", ".parquet")]
    labels = [path for path in tables if path.name in ("labels.csv", "labels.parquet")]
    if any(root.glob(open_images.LABEL_TABLES)):
        found["openimages"] = root
    elif len(labels) == 2:
        found["csv"] = root  # refused where the table is read
    elif len(labels or tables) == 1:
        found["csv"] = (labels or tables)[0]
    if not found or (labels and len(found) == 1):
        files = [path for path in root.rglob("[!.]*") if is_image_name(path) or is_shard(path.name)]
        if files and all(is_shard(path.name) for path in files):
            found = {"shards": root}  # a table there is theirs
    if not found and any(_class_folders(root)):
        found[FOLDERS] = root
    return found


def _inside(root: Path) -> list[Path]:
    """What lies in a folder, sorted, without hidden files."""
    return sorted(path for path in root.iterdir() if path.name[0] != ".")


def _seen(path: Path) -> str:
    """What is in a place, for the message that it is none of the kinds."""
    if not path.is_dir():
        return f"a file {path.suffix or 'without suffix'}"
    if not (inside := _inside(path)):
        return "the folder is empty"
    for folder in inside:
        if folder.is_dir() and (found := _in_folder(folder)):
            return f"but {folder} holds one ({', '.join(found)}): give that folder"
    counts = Counter("folders" if each.is_dir() else each.suffix.lower() or "without suffix" for each in inside)
    return "it holds " + ", ".join(f"{name} ({count})" for name, count in counts.most_common(5))


def _files(root: Path, suffix: str) -> Iterator[Path]:
    """Files of a suffix in a folder and in its folders of splits."""
    for folder in (root, *(each for each in root.iterdir() if each.is_dir() and role_of(each.name))):
        yield from (path for path in folder.iterdir() if path.suffix.lower() == suffix and path.name[0] != ".")


def _splits(kind: str, root: Path) -> dict[str, Any]:
    """Which images train, choose the epoch and test, as options."""
    train, test = tar_shards.default_splits(root) if kind == "shards" else split_names(kind, str(root))
    names: list[str] = []
    if kind == "csv":
        names = table.list_splits(root)
    elif kind == "shards":
        names = tar_shards.list_splits(root)
    elif kind == "coco" and root.is_dir():
        names = coco_layout.list_splits(root)
    elif kind == "voc" and voc.find_devkit(root) is None:
        names = [folder.name for folder in root.iterdir() if folder.is_dir()]
    val = next((name for name in sorted(names) if role_of(name) == "val" and name != test), None)
    return _roles(train, val, test)


def _roles(train: str | None, val: str | None, test: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"train_split": train, "test_split": test or val, "val_fraction": 0.2}
    if test is not None and val is not None:
        options |= {"val_split": val, "val_fraction": None}
    if test is None and val is None:
        options["folds"] = 5
    return {name: value for name, value in options.items() if value is not None}


# ---- one folder per class --------------------------------------------------------------------------------------------


def _class_folders(root: Path) -> Iterator[tuple[str | None, Path]]:
    """(split, folder) of each folder of images; the split is None where the classes are directly in the root."""
    inside = sorted(folder for folder in root.iterdir() if folder.is_dir() and folder.name[0] != ".")
    places: list[tuple[str | None, Path]] = [
        (split.name, folder) for split in inside if role_of(split.name) for folder in sorted(split.iterdir())
    ] or [(None, folder) for folder in inside]
    for split, folder in places:
        if folder.is_dir() and any(is_image_name(path) for path in folder.iterdir()):
            yield split, folder


def write_folder_table(root: str | Path, target: Path) -> tuple[dict[str, Any], list[str]]:
    """Write the table of a set with one folder per class, one row per image and label, and give the options for it.

    Files with the same bytes in several folders are one image with several labels; two with one name are two images.

    Args:
        root: the folder.
        target: the .csv to write.

    Returns:
        The options of a data module, and sentences about what is not evident.

    Raises:
        ValueError: the same image in two splits.
    """
    place, first, rows = Path(root).resolve(), dict[str, tuple[str, str | None]](), list[tuple[str, str, str]]()
    images = labels = 0
    for split, folder in _class_folders(place):
        for path in sorted(path for path in folder.iterdir() if is_image_name(path)):
            name = path.relative_to(place).as_posix()
            if not is_utf8(name) or CONTROL.search(name):
                what = "is no UTF-8, as a table needs" if not is_utf8(name) else "holds a control character"
                raise ValueError(f"{place}: the name {name!r} {what}: rename this file or folder")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            known, of = first.setdefault(digest, (name, split))
            if of != split:
                raise ValueError(f"{place}: {known} and {name} are the same image in two splits: remove one of them")
            images, labels = images + (known == name), labels + 1
            rows.append((known, folder.name, split or ""))
    splits = {split for _, _, split in rows if split}
    with replacing(target) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "label", "split")[: 3 if splits else 2])
        writer.writerows(row[: 3 if splits else 2] for row in dict.fromkeys(rows))
    notes = [f"one row per image and label was written to {target}"]
    if labels > images:
        notes.append(f"{labels - images} files are copies of an image in another folder: it has both labels")
    roles = {role_of(split): split for split in sorted(splits)}
    options = {"kind": "csv", "root": str(target.resolve()), "image_folder": str(place), "on_error": "skip"}
    return {**options, **_roles(roles.get("train"), roles.get("val"), roles.get("test"))}, notes
