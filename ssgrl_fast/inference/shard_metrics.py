"""The metrics of predictions in shards (:mod:`ssgrl_fast.inference.shards`), in bounded memory.

Every metric depends on the known labels alone. The shards are read as a stream, and of each image the scores of its
known labels are kept, so that AP is exact. Where there are more than 2^25 of them, the classes are taken in groups,
with one reading of the shards for each.

| letter | meaning |
|---|---|
| M | labelled images |
| C | classes |
| K | known labels |
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssgrl_fast._utils.checks import check_choice, some
from ssgrl_fast._utils.escape import for_table
from ssgrl_fast.data.image_names import row_of
from ssgrl_fast.data.known_labels import KnownLabels, read_known_labels
from ssgrl_fast.inference.shards import Shards, check_same
from ssgrl_fast.labels.matrix import DIFFICULT_RULES
from ssgrl_fast.metrics.functional import (
    AP_DEFINITIONS,
    PredictionCounts,
    average_precision,
    check_prediction,
    predict_labels,
)
from ssgrl_fast.metrics.report import UNSTATED, Report, digests, report_of

__all__ = ["evaluate_shards"]

_ENTRIES = 1 << 25  # known labels whose scores are held at once
_BLOCK_VALUES = 1 << 22  # scores that are read at once: 17 MB
_ROW_OF_CODE = np.array([1, 0, 2])  # of the counts' rows, by code: 0, 1, -1


def evaluate_shards(
    predictions: str,
    labels: str | Path,
    *,
    descriptions: str | Path | None = None,
    split: str | None = None,
    ap_definition: str = "voc2010",
    difficult: str | None = None,
    top_k: int = 3,
    threshold: float = 0.5,
) -> Report:
    """Evaluate predictions that ``predict`` has written; the values are those of
    :func:`ssgrl_fast.metrics.evaluate` on the whole matrices.

    A label's image is the prediction whose file ends in its name, with or without an image's extension.

    Args:
        predictions: a folder of shards, on a disk or at an address, or one Parquet file; with scores of all classes.
        labels, descriptions, split: see :func:`~ssgrl_fast.data.known_labels.read_known_labels`.
        ap_definition, difficult, top_k, threshold: as for :func:`ssgrl_fast.metrics.evaluate`.

    Raises:
        FileNotFoundError: no predictions, or no labels.
        ValueError: predictions of several runs, or with ``top`` scores only; a labelled image without a prediction,
            with several, or with an error in place of one; NaN scores; labels that cannot be read.
    """
    check_choice("evaluate", "ap_definition", ap_definition, AP_DEFINITIONS)
    if difficult is not None:
        check_choice("evaluate", "difficult", difficult, DIFFICULT_RULES)
    check_prediction("evaluate", top_k, threshold)
    shards = Shards(predictions)
    if not (paths := shards.paths()):
        raise FileNotFoundError(f"{predictions}: no predictions in Parquet")
    facts = shards.open(paths[0])[1]
    if facts["top"] is not None:
        raise ValueError(f"{predictions}: holds the {facts['top']} highest scores of an image, AP needs those of all")
    names = facts["class_names"]
    known = read_known_labels(labels, names, descriptions=descriptions, split=split)
    images, others = _matched(shards, facts, known, str(labels))
    absent = bool((known.codes == -1).any())
    if difficult is None and not absent:
        known.codes[known.codes == 0] = -1  # 0 means difficult only where a -1 occurs
    every, highest = (np.zeros((3, len(names)), dtype=np.int64) for _ in range(2))
    labelled = np.zeros_like(every)
    ap = torch.full((len(names),), torch.nan, dtype=torch.float64)
    for group in _groups(known, len(names)):
        columns, scores, codes, above, among = _gathered(shards, images, known, group, top_k, threshold)
        for counts, chosen in ((every, above), (highest, among), (labelled, np.ones_like(above))):
            np.add.at(counts, (_ROW_OF_CODE[codes[chosen]], columns[chosen]), 1)
        order = np.argsort(columns, kind="stable")
        columns, ranked, signs = columns[order], torch.from_numpy(scores[order]), torch.from_numpy(codes[order])
        ends = np.searchsorted(columns, [*group, group[-1] + 1]).tolist()
        for number, start, end in zip(group, ends, ends[1:], strict=False):
            part = ranked[start:end, None], signs[start:end, None]
            ap[number] = average_precision(*part, definition=ap_definition, difficult=difficult or "ignore")
    seen = digests(known.ids, names, known.matrix)
    details = {"predictions": predictions, "labels": str(labels), "model": str(facts["model"])}
    details |= {"images without labels, left out": str(others)} if others else {}
    details |= {"labels of other classes, left out": known.left_out} if known.left_out else {}
    amounts = torch.from_numpy(labelled)
    return report_of(
        names,
        ap,
        (PredictionCounts(torch.from_numpy(every), amounts), PredictionCounts(torch.from_numpy(highest), amounts)),
        len(known.ids),
        difficult,
        ap_definition=ap_definition,
        top_k=top_k,
        threshold=threshold,
        details=details,
        images_sha256=seen[0],
        labels_sha256=seen[1],
        **{name: str(facts.get(name, UNSTATED)) for name in ("mode", "backend", "device", "dtype")},
    )


def _matched(
    shards: Shards, facts: dict[str, Any], known: KnownLabels, labels: str
) -> tuple[dict[str, np.ndarray], int]:
    """For each shard the labelled image of each row, int64, -1 for none; and how many rows have none."""
    wanted = {for_table(name): number for number, name in enumerate(known.ids)}
    found: list[str | None] = [None] * len(known.ids)
    images, others, broken = {}, 0, []
    for path in shards.paths():
        file, stored = shards.open(path)
        check_same(
            path, {name: facts[name] for name in ("model", "top", "class_names", "image_size", "resize")}, stored
        )
        table = file.read(["file", "error"])
        numbers = np.full(len(table), -1, dtype=np.int64)
        for row, (name, error) in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True)):
            number = row_of(name, wanted)
            if number is None:
                others += 1
                continue
            if (other := found[number]) is not None:
                raise ValueError(f"{labels}: {known.ids[number]} is the name of two predictions, {other} and {name}")
            found[number], numbers[row] = name, number
            if error is not None:
                broken.append(f"{name} ({error})")
        images[path] = numbers
    if broken:
        raise ValueError(f"{shards.folder}: {len(broken)} labelled images could not be read: {some(broken)}")
    if missing := [name for name, file in zip(known.ids, found, strict=True) if file is None]:
        raise ValueError(f"{shards.folder}: no prediction of {len(missing)} images of {labels}: {some(missing)}")
    return images, others


def _groups(known: KnownLabels, classes: int) -> Iterator[range]:
    """Consecutive classes with at most 2^25 known labels, or one class."""
    amounts = np.bincount(known.classes, minlength=classes)
    start, held = 0, 0
    for number, amount in enumerate(amounts.tolist()):
        if held + amount > _ENTRIES and number > start:
            yield range(start, number)
            start, held = number, 0
        held += amount
    yield range(start, classes)


def _gathered(
    shards: Shards, images: dict[str, np.ndarray], known: KnownLabels, group: range, top_k: int, threshold: float
) -> tuple[np.ndarray, ...]:
    """Of the known labels of a group of classes: class, score, code, whether the score is above the threshold, and
    whether it is also among the image's k highest."""
    parts: list[tuple[np.ndarray, ...]] = []
    for path, numbers in images.items():
        for start, filled, values in _blocks(shards, path, len(known.class_names)):
            own = numbers[start : start + len(filled)][filled]
            values, own = values[own >= 0], own[own >= 0]
            rows, places = known.entries(own)
            columns = known.classes[places]
            if len(group) < len(known.class_names):
                inside = (columns >= group[0]) & (columns <= group[-1])
                rows, places, columns = rows[inside], places[inside], columns[inside]
            scores = torch.from_numpy(values)
            if bool(scores.isnan().any()):
                raise ValueError(f"{path}: scores hold NaN")
            above = predict_labels(scores, threshold=threshold).numpy()[rows, columns]
            among = predict_labels(scores, top_k=top_k, threshold=threshold).numpy()[rows, columns]
            parts.append((columns, values[rows, columns], known.codes[places], above, among))
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))


def _blocks(shards: Shards, path: str, classes: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Of each block the first row's number; for each row whether it has scores; and those of the rows that have some,
    float32 [m, C]."""
    file, start = shards.open(path)[0], 0
    for batch in file.iter_batches(batch_size=max(1, _BLOCK_VALUES // classes), columns=["scores"]):
        column = batch["scores"]
        filled = column.is_valid().to_numpy(zero_copy_only=False)
        flat = column.flatten().to_numpy()
        if len(flat) != classes * int(filled.sum()):
            raise ValueError(f"{path}: from row {start + 1} on, some rows do not hold the scores of {classes} classes")
        yield start, filled, flat.reshape(-1, classes).copy()
        start += len(filled)
