"""Open Images by its own tables: verified image-level labels and class descriptions.

root/
    oidv6-train-annotations-human-imagelabels.csv   ImageID,Source,LabelName,Confidence
    validation-annotations-human-imagelabels.csv    the same, with or without -boxable before .csv
    test-annotations-human-imagelabels.csv
    oidv7-class-descriptions.csv                    LabelName,DisplayName (or without that header)
    train/ 000002b66c9c498e.jpg ...                 images

Confidence 1 is a verified positive, 0 a verified negative; what has no row is unknown (Kuznetsova et al., IJCV 2020).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast.data.base import FileDataset, OnError, Transform, check_distinct, read_all
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.image_names import Borders, ImageNames
from ssgrl_fast.data.split_words import role_of
from ssgrl_fast.data.table_file import TableText, read_text
from ssgrl_fast.labels.codings import sign_of
from ssgrl_fast.labels.matrix import ABSENT, PRESENT, UNKNOWN

__all__ = ["OpenImages", "VerifiedLabels", "default_splits", "find_tables", "read_labels"]

SPLITS = ("train", "validation", "test")
_HEADER = ("ImageID", "Source", "LabelName", "Confidence")
LABEL_TABLES = "*annotations-human-imagelabels*.csv"
_DESCRIPTIONS = "*class-descriptions*.csv"


@dataclass(frozen=True)
class VerifiedLabels:
    """Labels int8 [M, C] of 1 (verified present), -1 (verified absent) and -2 (unknown), C class names, M image ids,
    and the first line of each image in the table."""

    labels: Tensor
    class_names: list[str]
    image_ids: list[str]
    lines: list[int]


class OpenImages(FileDataset):
    """The images of a split and their verified labels.

    Args:
        root: the folder of the tables.
        split: "train", "validation" (or val) or "test".
        classes: C display names in column order; None: the classes that have a row in the split's table, in the order
            of the descriptions. Images without a row about any of the classes are left out.
        image_folder: the folder of the images; None: the sub-folder named like the split, or root.
        on_error: what to do with missing and broken images, see FileDataset.
        transform, seed: see MultiLabelDataset.
        allow_outside: read images outside root and ``image_folder`` too.
        more: ``max_pixels`` of FileDataset.

    Raises:
        OutsideRoot: the table names an image outside these folders, or a symbolic link leads there.
        FileNotFoundError: a table or an image does not exist.
        BrokenAnnotation: a table of another form, or a label that is stated twice in different ways.
        ValueError: several tables that may be meant, or a class that the descriptions do not have.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        classes: Sequence[str] | None = None,
        image_folder: str | Path | None = None,
        on_error: OnError = "raise",
        transform: Transform | None = None,
        seed: int = 0,
        allow_outside: bool = False,
        **more: int,
    ) -> None:
        source, descriptions = find_tables(root, split)
        read = read_labels(source, descriptions, classes=classes)
        folder = Path(root) / _split_name(split)
        if image_folder is not None or not folder.is_dir():
            folder = Path(root if image_folder is None else image_folder)
        borders = Borders(root, *([] if image_folder is None else [image_folder]), allow_outside=allow_outside)
        names = ImageNames(folder, borders)

        def existing(row: int) -> tuple[int, Path]:
            return row, names.find(read.image_ids[row], f"{source}, line {read.lines[row]}")

        found, skipped = read_all(range(len(read.image_ids)), existing, on_error)
        rows = [row for row, _ in found]
        self.class_source = f"{descriptions.name}" if classes is None else "argument classes"
        super().__init__(
            read.class_names,
            read.labels[rows],
            [read.image_ids[row] for row in rows],
            [place for _, place in found],
            skipped=skipped,
            on_error=on_error,
            transform=transform,
            seed=seed,
            **more,
        )


def default_splits(root: str | Path) -> tuple[str, str | None]:
    """The names of the training and test split: "train", and "test" where there is a table of it.

    Raises:
        ValueError: several tables of the test split.
    """
    return "train", "test" if _tables(root, "test") else None


def find_tables(root: str | Path, split: str) -> tuple[Path, Path]:
    """The label table of a split, and the class descriptions.

    Raises:
        FileNotFoundError: there is none.
        ValueError: several, or an unknown split.
    """
    found = []
    for pattern, files in (
        (LABEL_TABLES, _tables(root, split)),
        (_DESCRIPTIONS, sorted(Path(root).glob(_DESCRIPTIONS))),
    ):
        if not files:
            of = f" of split {split}" if pattern == LABEL_TABLES else ""
            raise FileNotFoundError(f"{root}: no table{of} called {pattern}")
        if len(files) > 1:
            raise ValueError(f"{root}: several tables may be meant: {', '.join(file.name for file in files)}; keep one")
        found.append(files[0])
    return found[0], found[1]


def read_labels(
    labels: str | Path, descriptions: str | Path, *, classes: Sequence[str] | None = None
) -> VerifiedLabels:
    """The verified labels of a split; images need not exist.

    Args:
        labels: the table ``ImageID,Source,LabelName,Confidence``.
        descriptions: the table of label and display names.
        classes: as for :class:`OpenImages`.

    Raises:
        FileNotFoundError, BrokenAnnotation, ValueError: see :class:`OpenImages`.
    """
    source, named = Path(labels), Path(descriptions)
    display = display_names(named)
    table = read_text(source, lambda header: set(_HEADER) <= set(header) or header[:1] == ["ImageID"])
    if missing := [name for name in _HEADER if name not in table.header]:
        raise BrokenAnnotation(f"{source}: expected the columns {','.join(_HEADER)}, no {', '.join(missing)} there")
    chosen = _chosen(table, source, named, display, classes)
    place = {label: number for number, label in enumerate(chosen)}
    # rows of the classes, and their images by number
    columns = np.fromiter((place.get(label, -1) for label in table.column("LabelName")), np.int64, len(table.lines))
    rows = np.flatnonzero(columns >= 0)
    if not len(rows):
        raise BrokenAnnotation(f"{source}: no row about any of the {len(chosen)} classes")
    all_ids = table.column("ImageID")
    ids = [all_ids[row] for row in rows.tolist()]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    if "" in numbers:
        raise BrokenAnnotation(f"{table.place(int(rows[ids.index('')]))}: no image id")
    images = np.fromiter(map(numbers.__getitem__, ids), np.int64, len(ids))
    codes = _codes(table)[rows]
    matrix = np.full((len(numbers), len(chosen)), UNKNOWN, dtype=np.int8)
    matrix[images, columns[rows]] = codes
    if len(wrong := np.flatnonzero(matrix[images, columns[rows]] != codes)):
        same = (images == images[wrong[0]]) & (columns[rows] == columns[rows[wrong[0]]])
        row = int(rows[same & (codes != codes[wrong[0]])][0])
        raise BrokenAnnotation(
            f"{table.place(row)}: {table.column('LabelName')[row]} of {all_ids[row]} has another Confidence here than "
            f"in line {table.lines[rows[wrong[0]]]}"
        )
    first = rows[np.unique(images, return_index=True)[1]].tolist()
    lines = [table.lines[row] for row in first]
    names = list(chosen.values())
    return VerifiedLabels(torch.from_numpy(matrix), names, list(numbers), lines)


def _split_name(split: str) -> str:
    role = role_of(split)
    name = {"val": "validation", "train": "train", "test": "test"}.get(role or "")
    if name is None:
        raise ValueError(f"Open Images has the splits {', '.join(SPLITS)}, got {split!r}")
    return name


def _tables(root: str | Path, split: str) -> list[Path]:
    name = _split_name(split)
    return sorted(
        path for path in Path(root).glob(LABEL_TABLES) if name in path.name.split("annotations")[0].split("-")
    )


def _codes(table: TableText) -> np.ndarray:
    """1 or -1 of every row: int8."""
    cells = table.column("Confidence")
    codes = {text: {"1": PRESENT, "0": ABSENT}.get(sign_of(text) or "") for text in set(cells)}
    if wrong := [text for text, code in codes.items() if code is None]:
        row = min(cells.index(text) for text in wrong)
        raise BrokenAnnotation(
            f"{table.place(row)}: Confidence must be 1 or 0 in verified labels, got {cells[row]!r} (machine-generated "
            "labels have values between; they are not read)"
        )
    return np.fromiter(map(codes.__getitem__, cells), np.int8, len(cells))


def display_names(path: Path) -> dict[str, str]:
    """Display name by label name, in the table's order; names that several labels have get their label name added.
    Errors as for :func:`read_pairs`."""
    names = read_pairs(path)
    times = Counter(names.values())
    return {label: name if times[name] == 1 else f"{name} ({label})" for label, name in names.items()}


def read_pairs(path: Path) -> dict[str, str]:
    """The rows of a table with two columns, with or without the header LabelName,DisplayName.

    Raises:
        BrokenAnnotation: other columns, or a label that is named twice.
    """
    table = read_text(path, lambda header: len(header) == 2)
    pairs: dict[str, str] = {}
    rows = list(zip(*table.columns, strict=True))
    for label, name in rows if table.header[0] == "LabelName" else [tuple(table.header), *rows]:
        if not label or not name or label in pairs:
            raise BrokenAnnotation(f"{path}: {label!r}, {name!r}: expected a label named once, and its display name")
        pairs[label] = name
    return pairs


def _chosen(
    table: TableText, source: Path, named: Path, display: dict[str, str], classes: Sequence[str] | None
) -> dict[str, str]:
    """Display name by label name of the columns, in order."""
    if classes is None:
        occurring = set(table.column("LabelName"))
        if strange := sorted(occurring - set(display)):
            row = table.column("LabelName").index(strange[0])
            raise BrokenAnnotation(f"{table.place(row)}: {strange[0]!r} is not described in {named}")
        return {label: name for label, name in display.items() if label in occurring}
    check_distinct("classes", classes)
    labels = {name: label for label, name in display.items()}
    if strange := [name for name in classes if name not in labels]:
        raise ValueError(f"{named}: no class {strange[0]!r} (names are those of the second column)")
    return {labels[name]: name for name in classes}
