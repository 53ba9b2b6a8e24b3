"""Prediction of the labels of image files (the verb ``predict``): a row per file, in order, as it is computed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ssgrl_fast._utils.ahead import default_readers, read_ahead
from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.files import replacing
from ssgrl_fast._utils.memory import return_memory
from ssgrl_fast.data.errors import BrokenImage
from ssgrl_fast.inference.figures import overlay
from ssgrl_fast.models import SSGRL

__all__ = ["FORMAT", "RowOptions", "Scorer", "predict_files", "predict_rows", "run_facts"]

FORMAT = "ssgrl_fast.predictions"
_LONGEST = 4096  # pixels of an overlay's longer side, so that its memory is bounded


class Scorer(Protocol):
    """What rows are computed by: a :class:`~ssgrl_fast.inference.predictor.Predictor`, which imports this module."""

    @property
    def model(self) -> Any: ...
    @property
    def source(self) -> str: ...
    @property
    def class_names(self) -> list[str]: ...

    def facts(self) -> dict[str, Any]: ...
    def read(self, path: Path) -> Tensor: ...
    def photograph(self, path: Path, longest: int) -> Any: ...
    def scores(self, images: Tensor, *, attention: bool = False) -> tuple[Tensor, Tensor | None]: ...
    def placement(self, picture: Any) -> Any: ...


@dataclass(frozen=True)
class RowOptions:
    """What a row holds and how it is computed.

    Attributes:
        top: number of scores to keep per file, the highest; labels are predicted among them alone, as in the paper's
            top-3 setting (4.1). None: all C.
        threshold: probability above which a label is predicted.
        batch_size: images per batch.
        overlays: folder for attention overlays as PNG, ``<number>_<file>_<rank>_<class>.png``, each on the photograph
            at its own size, at most 4096 pixels on the longer side; None: none.
        overlay_maps: number of overlays per file, of its highest scores.
        skip_broken: give a broken file a row with its error and continue, instead of raising.
        readers: threads that read images while the network runs; 0 reads between the batches; None: one per core, at
            most 8.
        progress: show a progress bar on standard error.
    """

    top: int | None = None
    threshold: float = 0.5
    batch_size: int = 8
    overlays: Path | None = None
    overlay_maps: int = 3
    skip_broken: bool = False
    readers: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for an option out of range."""
        for name in ("top", "batch_size", "overlay_maps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"predict: {name} must be at least 1, got {value}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"predict: threshold must be a probability from 0 to 1, got {self.threshold}")
        if self.readers is not None and self.readers < 0:
            raise ValueError(f"predict: readers must be at least 0, got {self.readers}")


def predict_files(predictor: Scorer, files: Sequence[Path], **options: Any) -> dict[str, Any]:
    """Predict the labels of image files; the result can be written as JSON.

    Args:
        predictor: the model.
        files: in the order of the result.
        options: of :class:`RowOptions`.

    Returns:
        {"format", the facts of the predictor, "threshold", "top", "class_names", "images", "broken", "files":
        [{"file", "labels", "scores": [{"class", "score" (logit), "probability"}, …] highest first, "overlays"}]}

    Raises:
        BrokenImage, FileNotFoundError: a file that cannot be read, unless skip_broken.
        ValueError: an option out of range, no file at all, or overlays of a model without attention.
    """
    chosen = RowOptions(**options)
    rows = list(predict_rows(predictor, files, chosen))
    broken = [row for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    return {**run_facts(predictor, chosen), "images": len(rows), "broken": broken, "files": rows}


def run_facts(predictor: Scorer, options: RowOptions) -> dict[str, Any]:
    """What all rows of a run depend on, for the first part of its file."""
    return {
        "format": FORMAT,
        **predictor.facts(),
        "threshold": options.threshold,
        "top": options.top,
        "class_names": predictor.class_names,
    }


def predict_rows(
    predictor: Scorer, files: Sequence[Path], options: RowOptions, *, start: int = 0
) -> Iterator[dict[str, Any]]:
    """A row for each image file, as it is computed: memory does not grow with their number.

    Args:
        predictor: the model.
        files: in the order of the rows.
        options: see :class:`RowOptions`.
        start: rows that are there already; the files before are not read.

    Yields:
        ``{"file", "labels", "scores": [{"class", "score" (logit), "probability"}, …] highest first, "overlays"}``, or
        ``{"file", "error"}`` for a broken file.

    Raises:
        BrokenImage, FileNotFoundError: a file that cannot be read, unless skip_broken.
        ValueError: no file at all, overlays of a model without attention, or scores that are not finite.
    """
    if options.overlays is not None and not isinstance(predictor.model, SSGRL):
        raise ValueError(
            f"predict: {predictor.source} holds a {type(predictor.model).__name__}, which has no attention maps"
        )
    if not files:
        raise ValueError("predict: no image files were given")
    kept = min(options.top or len(predictor.class_names), len(predictor.class_names))
    for batch in _batches(predictor, files[start:], options):
        images = [image for _, image in batch if isinstance(image, Tensor)]
        logits, maps = torch.empty(0, kept), None
        if images:
            logits, maps = predictor.scores(torch.stack(images), attention=options.overlays is not None)
        index = 0
        for number, image in batch:
            path = files[start + number]
            if not isinstance(image, Tensor):
                yield {"file": str(path), "error": image}
                continue
            row = _row(path, logits[index], predictor.class_names, kept, options.threshold)
            if options.overlays is not None and maps is not None:
                best = row["scores"][: options.overlay_maps]
                row["overlays"] = _write_overlays(options.overlays, start + number, path, predictor, maps[index], best)
            index += 1
            yield row
    return_memory()


def _batches(predictor: Scorer, files: Sequence[Path], options: RowOptions) -> Iterator[list[tuple[int, Tensor | str]]]:
    """Numbers and images in batches of ``batch_size`` images, read ahead; the error in place of a broken image."""
    readers = default_readers() if options.readers is None else options.readers
    read = partial(_read, predictor, skip_broken=options.skip_broken)
    images = read_ahead(read, _tracked(files, options.progress), readers=readers, ahead=2 * options.batch_size)
    batch: list[tuple[int, Tensor | str]] = []
    whole = 0
    for number, image in enumerate(images):
        batch.append((number, image))
        whole += isinstance(image, Tensor)
        if whole == options.batch_size:
            yield batch
            batch, whole = [], 0
    if batch:
        yield batch


def _read(predictor: Scorer, path: Path, *, skip_broken: bool) -> Tensor | str:
    try:
        return predictor.read(path)
    except (BrokenImage, FileNotFoundError) as error:
        if not skip_broken:
            raise
        return str(error)


def _row(path: Path, logits: Tensor, class_names: Sequence[str], kept: int, threshold: float) -> dict[str, Any]:
    if not torch.isfinite(logits).all():
        raise ValueError(f"predict: {path}: the model's scores are not finite: its weights may be damaged")
    order = torch.argsort(logits, descending=True, stable=True)[:kept].tolist()
    probabilities = logits.sigmoid().tolist()
    scores = [
        {"class": class_names[index], "score": logits[index].item(), "probability": probabilities[index]}
        for index in order
    ]
    labels = [entry["class"] for entry in scores if entry["probability"] > threshold]
    return {"file": str(path), "labels": labels, "scores": scores}


def _write_overlays(
    folder: Path,
    number: int,
    path: Path,
    predictor: Scorer,
    maps: Tensor,
    best: Sequence[dict[str, Any]],
) -> list[str]:
    pillow = need("PIL.Image", "train", "attention overlays")
    picture, written = predictor.photograph(path, _LONGEST), []
    placement = predictor.placement(picture.shape)
    for rank, entry in enumerate(best, start=1):
        shown = overlay(picture, maps[predictor.class_names.index(entry["class"])].numpy(), placement)
        safe = re.sub(r"[^\w.-]+", "_", entry["class"])
        target = folder / f"{number:05d}_{_short(path.stem)}_{rank}_{_short(safe)}.png"
        with replacing(target) as part:
            pillow.fromarray(shown).save(part, format="PNG")
        written.append(str(target))
    return written


def _short(part: str) -> str:
    """At most 70 bytes of a part of a file's name: a file system allows 255 in all, and a temporary name is longer."""
    content = os.fsencode(part)
    return part if len(content) <= 70 else content[:70].decode(errors="ignore")


def _tracked(files: Sequence[Path], progress: bool) -> Iterator[Path]:
    if not progress:
        yield from files
        return
    tools = need("rich.progress", "train", "the progress bar of predict")
    console = need("rich.console", "train", "the progress bar of predict").Console(stderr=True)
    yield from tools.track(files, description="predict", console=console)
