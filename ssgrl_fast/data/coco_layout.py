"""Where the images and the JSON of a split in the COCO format lie.

| layout | JSON | images |
|---|---|---|
| COCO's own | ``annotations/instances_<split>.json`` | ``<split>/`` or ``images/<split>/`` |
| Roboflow's | ``<split>/_annotations.coco.json`` | beside it |
| any | a path that ends in ``.json``, as the root or as a split | found near it by the first file name |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

__all__ = ["default_splits", "find_split", "list_splits"]

_BESIDE = "_annotations.coco.json"


def find_split(root: str | Path, split: str | None, first_image: Callable[[Path], str | None]) -> tuple[Path, Path]:
    """The image folder and the JSON of a split.

    Args:
        root: the folder of the set, or a JSON file.
        split: name of a split, or a JSON file, absolute or relative to the root; None: the root is a JSON file, or a
            folder with a ``_annotations.coco.json``.
        first_image: the ``file_name`` of the first image that a JSON lists; asked where the layout does not say which
            folder its images are in.

    Raises:
        FileNotFoundError: the folder or the JSON does not exist; the message names the expected paths and the available
            splits.
        ValueError: a name of a split where the root is a JSON file, or no split where it has several.
    """
    root = Path(root)
    if split is None and not root.is_dir():
        return _folder_of(root, root, first_image), root
    if split is None:
        if not (root / _BESIDE).is_file():
            raise ValueError(f"{root}: split must be one of {', '.join(list_splits(root)) or 'none'}, or a JSON file")
        return root, root / _BESIDE
    if split.lower().endswith(".json"):
        places = [(root if root.is_dir() else root.parent) / split, Path(split)]
        annotations = next((place for place in places if place.is_file()), places[0])
        return _folder_of(annotations, root, first_image), annotations
    if root.is_file():
        raise ValueError(f"{root}: a JSON file has no split {split!r}; name another JSON file")
    if (root / split / _BESIDE).is_file():
        return root / split, root / split / _BESIDE
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


def _folder_of(annotations: Path, root: Path, first_image: Callable[[Path], str | None]) -> Path:
    """The folder that the file names in a JSON are relative to: the first of several that holds its first image."""
    if not annotations.is_file():
        raise FileNotFoundError(f"{annotations}: no such annotation file")
    split = annotations.stem.removeprefix("instances_")
    tops = list(dict.fromkeys([annotations.parent, annotations.parent.parent, *([root] if root.is_dir() else [])]))
    folders = [place for top in tops for place in (top, top / "images", top / split, top / "images" / split)]
    name = first_image(annotations)
    if name is None:
        return annotations.parent
    for folder in folders:
        if (folder / name).is_file():
            return folder
    tried = ", ".join(map(str, folders))
    raise FileNotFoundError(f"{annotations}: its first image {name} is in none of the folders {tried}")


def roots_of(root: str | Path, annotations: Path) -> list[Path]:
    """The folders that the images of a JSON file may lie in: the root, if it is a folder; of a JSON file outside it, or
    that is the root itself, the folder above the one that holds it as well, where ``annotations/`` has its images."""
    roots = [Path(root)] if Path(root).is_dir() else []
    place = annotations.resolve()
    if roots and place.is_relative_to(roots[0].resolve()):
        return roots
    above = place.parent.parent
    return [*roots, place.parent if above == above.parent else above]


def list_splits(root: str | Path) -> list[str]:
    """The splits of COCO's own and of Roboflow's layout, sorted."""
    own = {path.stem.removeprefix("instances_") for path in (Path(root) / "annotations").glob("instances_*.json")}
    return sorted(own | {path.parent.name for path in Path(root).glob(f"*/{_BESIDE}")})


def default_splits(root: str | Path) -> tuple[str | None, str | None]:
    """The split whose name begins with "train", and the one to test on: in Roboflow's layout ``test``, else the one
    whose name begins with "val"; None without one. Both None for a root that is a JSON file or the folder of one split.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        ValueError: no training split, or several splits with one of these beginnings.
    """
    root = Path(root)
    if root.is_file() or (root / _BESIDE).is_file():
        return None, None
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    splits = list_splits(root)
    train, test = ([name for name in splits if name.startswith(start)] for start in ("train", "val"))
    if (root / "test" / _BESIDE).is_file():
        test = ["test"]
    if len(train) != 1 or len(test) > 1:
        raise ValueError(
            f"{root}: the splits cannot be chosen by their names, pass them; available splits "
            f"(annotations/instances_<split>.json or <split>/{_BESIDE}): {', '.join(splits) or 'none'}"
        )
    return train[0], test[0] if test else None
