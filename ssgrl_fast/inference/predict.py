"""Prediction of the labels of image files (the verb ``predict``): a row per file, in order, as it is computed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ssgrl_fast._utils.ahead import default_readers, read_ahead
from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.files import replacing
from ssgrl_fast._utils.memory import return_memory
from ssgrl_fast.data.errors import BrokenImage
from ssgrl_fast.data.sources import ImageSource
from ssgrl_fast.inference.figures import overlay
from ssgrl_fast.models import SSGRL

__all__ = [
    "FORMAT",
    "RowOptions",
    "Scored",
    "Scorer",
    "as_row",
    "predict_files",
    "predict_rows",
    "predicted",
    "progress_bar",
    "run_facts",
    "score_files",
]

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
    def read(self, path: str, opener: Any = None) -> Tensor: ...
    def photograph(self, path: str, longest: int, opener: Any = None) -> Any: ...
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
        attention: keep the attention of the kept scores' classes (eq. 5), for rows in Parquet.
    """

    top: int | None = None
    threshold: float = 0.5
    batch_size: int = 8
    overlays: Path | None = None
    overlay_maps: int = 3
    skip_broken: bool = False
    readers: int | None = None
    progress: bool = False
    attention: bool = False

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
    """What all rows of a run depend on, for the first part of its file.

    Raises:
        ValueError: attention of a model without it.
    """
    if (options.attention or options.overlays is not None) and not isinstance(predictor.model, SSGRL):
        raise ValueError(
            f"predict: {predictor.source} holds a {type(predictor.model).__name__}, which has no attention maps"
        )
    facts = predictor.facts()
    grid = predictor.model.attention_grid(facts["image_size"], facts["image_size"]) if options.attention else None
    return {
        "format": FORMAT,
        **facts,
        "threshold": options.threshold,
        "top": options.top,
        "class_names": predictor.class_names,
        "attention": None if grid is None else list(map(len, grid)),
    }


def predict_rows(predictor: Scorer, files: Sequence[str | Path], options: RowOptions) -> Iterator[dict[str, Any]]:
    """A row for each image file, as it is computed; see :func:`score_files` and :func:`as_row`.

    Raises:
        ValueError: also if there is no file at all.
    """
    if not files:
        raise ValueError("predict: no image files were given")
    facts = run_facts(predictor, options)
    for scored in score_files(predictor, (ImageSource(str(file)) for file in files), options, total=len(files)):
        yield as_row(scored, facts)


class Scored(NamedTuple):
    """An image's name with its logits, float32 [C], the overlays that were written, and attention [C, h, w] where it is
    kept; or with the error of a broken image."""

    file: str
    logits: Tensor | None = None
    overlays: list[str] | None = None
    error: str | None = None
    attention: Tensor | None = None


def score_files(
    predictor: Scorer, images: Iterable[ImageSource], options: RowOptions, *, start: int = 0, total: int | None = None
) -> Iterator[Scored]:
    """The scores of each image, as they are computed: memory does not grow with the number of images.

    Args:
        predictor: the model.
        images: in the order of the result; taken one by one (:func:`~ssgrl_fast.data.sources.open_images`).
        options: see :class:`RowOptions`.
        start: the number of the first image, for the names of overlays.
        total: how many images there are, for the progress bar's time that is left; None: unknown.

    Raises:
        BrokenImage, FileNotFoundError: an image that cannot be read, unless skip_broken.
        Unreachable: the store of an image gives no answer.
        ValueError: overlays of a model without attention, or scores that are not finite.
    """
    number, mapped = start, options.attention or options.overlays is not None
    for batch in _batches(predictor, images, options, total):
        read = [image for _, image in batch if isinstance(image, Tensor)]
        logits, maps = torch.empty(0), None
        if read:
            logits, maps = predictor.scores(torch.stack(read), attention=mapped)
        index = 0
        for source, image in batch:
            if not isinstance(image, Tensor):
                yield Scored(source.name, error=image)
            elif not torch.isfinite(logits[index]).all():
                raise ValueError(
                    f"predict: {source.name}: the model's scores are not finite: its weights may be damaged"
                )
            else:
                written = None
                if options.overlays is not None and maps is not None:
                    best = ranking(logits[index], options.overlay_maps)[: options.top].tolist()
                    written = _write_overlays(options.overlays, number, source, predictor, maps[index], best)
                kept = maps[index] if options.attention and maps is not None else None
                yield Scored(source.name, logits[index], written, attention=kept)
                index += 1
            number += 1
    return_memory()


def ranking(logits: Tensor, top: int | None) -> Tensor:
    """The classes with the ``top`` highest logits of [C], or all, the highest first; equal ones in their order."""
    return torch.argsort(logits, descending=True, stable=True)[:top]


def predicted(logits: Tensor, facts: dict[str, Any]) -> list[str]:
    """The labels among the "top" highest logits of [C] whose probability (eq. 11) is above the "threshold"."""
    order = ranking(logits, facts["top"])
    above = logits.sigmoid().double() > facts["threshold"]
    return [facts["class_names"][index] for index in order[above[order]].tolist()]


def as_row(scored: Scored, facts: dict[str, Any]) -> dict[str, Any]:
    """An image's row.

    Args:
        scored: the image.
        facts: of :func:`run_facts`.

    Returns:
        ``{"file", "labels", "scores": [{"class", "score" (logit), "probability"}, …] highest first, "overlays"}``, or
        ``{"file", "error"}`` for a broken file.
    """
    if (logits := scored.logits) is None:
        return {"file": scored.file, "error": scored.error}
    values, probabilities, names = logits.tolist(), logits.sigmoid().tolist(), facts["class_names"]
    scores = [
        {"class": names[index], "score": values[index], "probability": probabilities[index]}
        for index in ranking(logits, facts["top"]).tolist()
    ]
    row = {"file": scored.file, "labels": predicted(logits, facts), "scores": scores}
    return row if scored.overlays is None else {**row, "overlays": scored.overlays}


def _batches(
    predictor: Scorer, images: Iterable[ImageSource], options: RowOptions, total: int | None
) -> Iterator[list[tuple[ImageSource, Tensor | str]]]:
    """Images in batches of ``batch_size``, read ahead; the error in place of a broken one."""
    readers = default_readers() if options.readers is None else options.readers
    read = partial(_read, predictor, skip_broken=options.skip_broken)
    tracked = _tracked(images, total) if options.progress else images
    batch: list[tuple[ImageSource, Tensor | str]] = []
    whole = 0
    for source, image in read_ahead(read, tracked, readers=readers, ahead=2 * options.batch_size):
        batch.append((source, image))
        whole += isinstance(image, Tensor)
        if whole == options.batch_size:
            yield batch
            batch, whole = [], 0
    if batch:
        yield batch


def _read(predictor: Scorer, source: ImageSource, *, skip_broken: bool) -> tuple[ImageSource, Tensor | str]:
    try:
        return source, predictor.read(*source)
    except (BrokenImage, FileNotFoundError) as error:
        if not skip_broken:
            raise
        return source, str(error)


def _write_overlays(
    folder: Path, number: int, source: ImageSource, predictor: Scorer, maps: Tensor, best: Sequence[int]
) -> list[str]:
    pillow = need("PIL.Image", "train", "attention overlays")
    picture, written = predictor.photograph(source.name, _LONGEST, source.opener), []
    placement = predictor.placement(picture.shape)
    for rank, index in enumerate(best, start=1):
        shown = overlay(picture, maps[index].numpy(), placement)
        safe = re.sub(r"[^\w.-]+", "_", predictor.class_names[index])
        target = folder / f"{number:05d}_{_short(Path(source.name).stem)}_{rank}_{_short(safe)}.png"
        with replacing(target) as part:
            pillow.fromarray(shown).save(part, format="PNG")
        written.append(str(target))
    return written


def _short(part: str) -> str:
    """At most 70 bytes of a part of a file's name: a file system allows 255 in all, and a temporary name is longer."""
    content = os.fsencode(part)
    return part if len(content) <= 70 else content[:70].decode(errors="ignore")


def progress_bar() -> Any:
    """A progress bar of ``predict`` on standard error: images, images per second, time left."""
    bars = need("rich.progress", "train", "the progress bar of predict")
    console = need("rich.console", "train", "the progress bar of predict").Console(stderr=True)

    class Speed(bars.ProgressColumn):  # type: ignore[misc, name-defined]
        def render(self, task: Any) -> str:
            speed = f", {task.speed:.3g} images/s" if task.speed else ""  # there is none before the second image
            return f"{task.completed:,.0f} images{speed}"

    return bars.Progress(*bars.Progress.get_default_columns(), Speed(), console=console)


def _tracked(images: Iterable[ImageSource], total: int | None) -> Iterator[ImageSource]:
    with progress_bar() as bar:
        yield from bar.track(images, total=total, description="predict")
