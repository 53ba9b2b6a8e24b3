"""Image-level labels without their images, from any of the formats that a graph is counted from.

| format | function |
|---|---|
| ``.npz`` with ``labels`` [M, C] and perhaps ``class_names``; ``.npy`` [M, C]; a table | :func:`read_file` |
| annotations in COCO format, a JSON file | :func:`read_coco` |
| a folder in Pascal VOC format | :func:`read_voc` |

M is the number of images, C the number of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ssgrl_fast._utils.arrays import read_array, read_arrays
from ssgrl_fast.data.table_format import PLAIN_TABLE, TableFormat
from ssgrl_fast.labels.matrix import check_class_names, check_labels

__all__ = ["ImageLabels", "read_coco", "read_file", "read_voc"]


@dataclass(frozen=True)
class ImageLabels:
    """Labels and what they were read from.

    Attributes:
        labels: bool or int8 [M, C]: 1 present, 0 only difficult objects, -1 absent.
        class_names: C names.
        source: the file or folder, with the split in parentheses where there is one.
        image_names: M names or ids; None where the source has none.
    """

    labels: Tensor
    class_names: list[str]
    source: str
    image_names: list[str] | None


def read_file(
    path: str | Path,
    *,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    form: TableFormat = PLAIN_TABLE,
) -> ImageLabels:
    """Labels of an array file or a table.

    Args:
        path: ``.npz`` with ``labels`` and perhaps ``class_names``, ``.npy``, or a table, ``.csv``, ``.tsv`` or
            ``.parquet`` (:mod:`ssgrl_fast.data.table`).
        split: of a table with splits, the rows to take; None: the rows for training, because a graph is counted on
            training images alone (section 3.3), or all rows of a table without splits.
        class_names: C names; None: those of the file.
        form: how to read a table where its content does not tell.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind or a broken one, a split it does not have, no class names, or another number
            of them than C; the message names the file.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} is no file")
    own: list[str] | None
    image_names: list[str] | None = None
    kind = source.suffix.lower()
    if kind in (".csv", ".tsv", ".parquet"):
        labels, own, image_names, split = _table(source, split, class_names, form)
    elif kind in (".npz", ".npy"):
        if form != PLAIN_TABLE:
            raise ValueError(f"{source} is no table: its options (separator, coding, columns …) are for tables")
        if split is not None:
            raise ValueError(f"{source} holds no splits, got split {split!r}")
        labels, own = _arrays(source)
    else:
        raise ValueError(f"{source} must end in .npz, .npy, .csv, .tsv, .parquet, got {source.suffix!r}")
    names = own if class_names is None else list(class_names)
    if own is not None and names != own and sorted(own) == sorted(names or ()):  # the same classes in another order
        labels = labels[:, [own.index(name) for name in names or ()]]
    if names is None:
        raise ValueError(f"{source} holds no class names: give class_names (--class-names FILE)")
    return ImageLabels(labels, check_class_names(str(source), names, labels.shape[1]), _named(path, split), image_names)


def read_coco(annotations: str | Path, *, class_names: Sequence[str] | None = None) -> ImageLabels:
    """Labels of annotations in COCO format; no image file is looked for.

    Args:
        annotations: the JSON file.
        class_names: the classes in the order of the columns; None: all categories in the order of their ids.

    Raises:
        FileNotFoundError, BrokenAnnotation, ValueError: see :func:`ssgrl_fast.data.coco.read_labels`.
    """
    from ssgrl_fast.data import coco  # needs the extra train, unlike read_file

    labels, names, files = coco.read_labels(annotations, classes=class_names)
    return ImageLabels(labels, names, str(annotations), files)


def read_voc(
    folder: str | Path,
    *,
    split: str | None = None,
    class_names: Sequence[str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    coding: str | None = None,
    allow_outside: bool = False,
) -> ImageLabels:
    """Labels of a folder in Pascal VOC format.

    Args:
        folder: with ``Annotations`` and ``ImageSets``, or with a sub-folder per split.
        split: a list of ``ImageSets`` or a sub-folder; None: the training images, ``trainval`` or ``train``.
        class_names: the classes in the order of the columns; None: those found, sorted.
        on_error: "raise", or "skip" to leave out broken entries.
        coding, allow_outside: see :class:`ssgrl_fast.data.voc.PascalVOC`.

    Raises:
        FileNotFoundError, BrokenAnnotation, ValueError: see :class:`ssgrl_fast.data.voc.PascalVOC`.
    """
    from ssgrl_fast.data import voc  # needs the extra train, unlike read_file

    split = split or voc.default_splits(folder)[0]
    rules: dict[str, Any] = {"on_error": on_error, "coding": coding, "allow_outside": allow_outside}
    images = voc.PascalVOC(folder, split, classes=class_names, **rules)
    return ImageLabels(images.labels, images.class_names, _named(folder, split), images.ids)


def _named(path: str | Path, split: str | None) -> str:
    return f"{path} ({split})" if split else str(path)


def _arrays(path: Path) -> tuple[Tensor, list[str] | None]:
    """Labels of a NumPy file, and its class names if it has them."""
    names: list[str] | None = None
    try:
        if path.suffix.lower() == ".npz":
            arrays = read_arrays(path, ("labels",), ("class_names",))
            names = [str(name) for name in arrays["class_names"]] if "class_names" in arrays else None
            array = arrays["labels"]
        else:
            array = read_array(path)
        return check_labels("read_file", "labels", array), names
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path} cannot be read as labels: {error}") from error


def _table(
    path: Path, split: str | None, classes: Sequence[str] | None, form: TableFormat
) -> tuple[Tensor, list[str], list[str], str | None]:
    """Labels, class names and file names of a table's rows, and the split that they are of."""
    from ssgrl_fast.data import table  # needs the extra train, unlike array files

    chosen = split or table.default_splits(path, classes=classes, form=form)[0]
    read = table.read_table(path, classes=classes, form=form)
    rows = read.rows_of(chosen)
    return read.labels[rows], read.class_names, [read.files[row] for row in rows], chosen
