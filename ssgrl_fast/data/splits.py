"""Division of a data set's images into training, validation and test: its own splits, folds, held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssgrl_fast.data import coco, open_images, table, voc
from ssgrl_fast.data.options import SplitOptions
from ssgrl_fast.data.table_format import PLAIN_TABLE, TableFormat


def split_names(
    kind: str,
    root: str | None,
    *,
    year: str | None = None,
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    classes: Sequence[str] | None = None,
    form: TableFormat = PLAIN_TABLE,
) -> tuple[str | None, str | None]:
    """The names of the training and the test split: the arguments ``train`` and ``test``, else the data set's own.

    Args:
        kind: "digits", "voc", "coco", "csv" or "openimages".
        root: the folder of the data set, or the table itself; None for digits.
        year: the year of a devkit (kind "voc").
        train, val, test: names that the user chose, or None.
        classes: class names that the user gave, or None (kind "csv").
        form: of a table (kind "csv").

    Returns:
        (training, test); None for a test split that does not exist, and for the training split of a table without
        splits.

    Raises:
        FileNotFoundError, ValueError: see ``default_splits`` and ``list_splits`` of the readers.
    """
    if kind == "digits":
        return "train", "test"
    place = str(root)
    if kind == "csv":  # also with both names: the words there decide whether they are unambiguous
        return table.default_splits(place, train=train, val=val, test=test, classes=classes, form=form)
    if train is not None and test is not None:
        return train, test
    if kind == "openimages":
        own_train, own_test = open_images.default_splits(place)
        return train or own_train, test or own_test
    if kind == "coco" and train is not None:
        validation = [name for name in coco.list_splits(place) if name.startswith("val")]
        return train, validation[0] if len(validation) == 1 else None
    own = voc.default_splits(place, year) if kind == "voc" else coco.default_splits(place)
    return train or own[0], test or own[1]


def draw_rows(
    count: int, *, val_fraction: float | None = None, folds: int = 0, fold: int = 0, seed: int = 0
) -> dict[str, list[int]]:
    """Distribute the rows 0 .. count-1 over "train", "val" and "test", each sorted.

    Args:
        count: number of images.
        val_fraction: share of the images outside the test fold that is held out for validation, at least one image;
            None: no validation images.
        folds: number of folds for cross-validation, or 0 for no test images.
        fold: the test fold, 0 .. folds-1.
        seed: seed of the shuffle.

    Raises:
        ValueError: fewer images than folds, or no training image left.
    """
    if count < folds:
        raise ValueError(f"{count} images are too few for {folds} folds, of which one is set aside as a test")
    test = fold_rows(count, folds, seed)[fold] if folds else []
    order = list(range(count)) if not folds and val_fraction is None else _shuffled(count, seed)
    tested = set(test)
    rest = [row for row in order if row not in tested]
    held_out = max(1, round(len(rest) * val_fraction)) if val_fraction is not None else 0
    if held_out >= len(rest):
        raise ValueError(f"val_fraction {val_fraction} leaves no training image of {len(rest)}")
    return {"train": sorted(rest[held_out:]), "val": sorted(rest[:held_out]), "test": test}


def fold_rows(count: int, folds: int, seed: int = 0) -> list[list[int]]:
    """Rows 0 .. count-1, shuffled and divided into folds whose sizes differ by at most one; each sorted."""
    order = _shuffled(count, seed)
    return [sorted(order[number::folds]) for number in range(folds)]


def _shuffled(count: int, seed: int) -> list[int]:
    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order


def selection(data: Any) -> str:
    """A description for reports of the images on which a
    :class:`~ssgrl_fast.data.datamodule.MultiLabelDataModule` selects the best epoch: held-out images, or the test
    images as in the published code (D19)."""
    given: SplitOptions | None = getattr(data, "options", None)
    if given is not None and given.val_fraction is not None:
        return f"{given.val_fraction:g} of the training images, held out (split seed {given.split_seed})"
    if given is not None and given.val_split is not None:
        own = given.val_split == "test_split"
        return "the test images themselves (D19)" if own else f"split {given.val_split}"
    return "validation images of the set" if getattr(data, "has_val", False) else "nothing: the last epoch"
