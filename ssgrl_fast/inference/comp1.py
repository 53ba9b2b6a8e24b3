"""Results in the format of the Pascal VOC evaluation server: one text file a class (competition comp1, classification).

Each line is ``<image id> <confidence>``; the server ranks a class's images by confidence (D29). Nine digits tell all
float32 scores apart, so that rounding makes no ties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from ssgrl_fast._utils.files import write_text

__all__ = ["write_comp1"]


def write_comp1(
    folder: str | Path, class_names: Sequence[str], scores: Mapping[str, Tensor], *, split: str = "test"
) -> list[Path]:
    """Write ``comp1_cls_<split>_<class>.txt`` for every class.

    Args:
        folder: made if need be; files of the same names are replaced.
        class_names: C names, as the server knows them.
        scores: image id (``2008_000001``) to its C scores, logits or probabilities.
        split: the image set's name.

    Returns:
        The files, in the order of the classes.

    Raises:
        ValueError: no image, an id with a blank, or scores of another number than C or not finite.
        OSError: the disc refused; the file it names is as it was.
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
        path = target / f"comp1_cls_{split}_{label}.txt"
        write_text(path, "".join(f"{name} {float(values[column]):.9g}\n" for name, values in scores.items()))
        written.append(path)
    return written
