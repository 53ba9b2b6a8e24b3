"""Results in the format of the Pascal VOC evaluation server: a text file per class (competition comp1).

Each line is ``<image id> <confidence>``; the server ranks the images of each class by confidence (D29). Nine digits
distinguish all float32 scores, so that rounding makes no ties.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ssgrl_fast._utils.files import write_text
from ssgrl_fast._utils.text import parse_json

__all__ = ["read_predictions", "write_comp1"]


def read_predictions(path: str | Path) -> tuple[list[str], dict[str, Tensor]]:
    """Read what `ssgrl-fast predict --output` wrote.

    Returns:
        C class names, and by image id (the file name without folder and extension) C logits.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, an image without the scores of all classes, or two images of one id; the
            message names the file.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such predictions")
    try:
        content = parse_json(source.read_text(encoding="utf-8-sig"))
        class_names, files = content["class_names"], content["files"]
        scores = [(entry["file"], {row["class"]: row["score"] for row in entry["scores"]}) for entry in files]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{source}: not what `ssgrl-fast predict --output` writes ({error!r})") from error
    logits: dict[str, Tensor] = {}
    for file, by_class in scores:
        image_id = Path(file).stem
        if set(by_class) != set(class_names):
            raise ValueError(
                f"{source}: {file} has {len(by_class)} of {len(class_names)} scores: predict without --top"
            )
        if image_id in logits:
            raise ValueError(f"{source}: two images are called {image_id}")
        logits[image_id] = torch.tensor([by_class[name] for name in class_names])
    return class_names, logits


def write_comp1(
    folder: str | Path, class_names: Sequence[str], scores: Mapping[str, Tensor], *, split: str = "test"
) -> list[Path]:
    """Write ``comp1_cls_<split>_<class>.txt`` for every class.

    A file's name cannot hold ``/``: of a class or split with it (or with ``\\``) these are written %2F, %5C and a ``%``
    %25.

    Args:
        folder: made if it does not exist; files of the same names are replaced.
        class_names: C names, as the server knows them.
        scores: image id (``2008_000001``) to its C scores, logits or probabilities.
        split: the image set's name.

    Returns:
        The files, in the order of the classes.

    Raises:
        ValueError: no image, an id with a blank, or not C finite scores.
        OSError: a file could not be written; the earlier file of that name is as it was.
    """
    if not scores:
        raise ValueError("write_comp1: no image")
    for name, values in scores.items():
        if not name or any(character.isspace() for character in name):
            raise ValueError(f"write_comp1: an image id must be one word, got {name!r}")
        if list(values.shape) != [len(class_names)] or not bool(values.isfinite().all()):
            raise ValueError(
                f"write_comp1: {name} must have {len(class_names)} finite scores, got {list(values.shape)}: {values}"
            )
    target = Path(folder)
    written = []
    for column, label in enumerate(class_names):
        path = target / f"comp1_cls_{_file_part(split)}_{_file_part(label)}.txt"
        write_text(path, "".join(f"{name} {float(values[column]):.9g}\n" for name, values in scores.items()))
        written.append(path)
    return written


def _file_part(label: str) -> str:
    """The name of a class or split as a part of a file's name; different names stay different."""
    if not set(label) & set("/\\\0") and not re.search("%[0-9A-F]{2}", label):
        return label
    return "".join(f"%{ord(each):02X}" if each in "/\\%\0" else each for each in label)
