"""Prediction of the labels of image files (the verb ``predict``)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast import backends
from ssgrl_fast._utils.checks import check_choice, need
from ssgrl_fast._utils.files import replacing
from ssgrl_fast._version import __version__
from ssgrl_fast.data.errors import BrokenImage
from ssgrl_fast.inference.figures import Sample, overlay
from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier, from_pretrained
from ssgrl_fast.models import bundle as checkpoints

__all__ = ["Predictor", "find_images", "newest_bundle", "predict_files", "search_images"]

FORMAT = "ssgrl_fast.predictions"
DTYPES = ("float32", "bfloat16", "float64", "fp8")
"""What :meth:`Predictor.to_dtype` takes."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictor:
    """A model with the preprocessing of its images.

    Attributes:
        model: SSGRL or the pooling baseline, in evaluation mode.
        source: the bundle the model was read from.
        image_size, resize: of ``eval_transform``, pixels.
    """

    model: SSGRL | GlobalPoolingClassifier
    source: str
    image_size: int
    resize: int

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        *,
        image_size: int | None = None,
        resize: int | None = None,
        device: str = "cpu",
        backend: str | None = None,
    ) -> Self:
        """Read a bundle.

        Args:
            bundle: folder of a bundle, or a Hub repository.
            image_size, resize: None: those of the bundle. If only image_size is given, images are resized to it without
                a crop; if only resize, it is cropped to the bundle's image_size.
            device: where the model runs.
            backend: of the three operations; None: the fastest.

        Raises:
            FileNotFoundError, ValueError: see ``SSGRL.from_pretrained``; a backend for a model without SSGRL's head; no
                image_size, and the bundle does not state one.
            BackendUnavailable: the named backend cannot run here.
        """
        for name, side in (("image_size", image_size), ("resize", resize)):
            if side is not None and side < 1:
                raise ValueError(f"Predictor.load: {name} must be at least 1 pixel, got {side}")
        folder = checkpoints.locate(bundle)
        kind = checkpoints.read_config(folder)["kind"]
        if backend is not None and kind != "SSGRL":
            raise ValueError(f"backend {backend!r} is for SSGRL's head; {bundle} holds a {kind}")
        model = from_pretrained(folder) if backend is None else SSGRL.from_pretrained(folder, backend=backend)
        stored = model.preprocessing or {}
        if image_size is None:
            if "image_size" not in stored:
                raise ValueError(
                    f"{bundle}: its config.json does not state the image size that the model was trained with, and at "
                    "another size its scores are wrong: give it with --image-size (in Python: image_size=…), or set "
                    'model.preprocessing = {"image_size": …, "resize": …} before save_pretrained'
                )
            image_size = stored["image_size"]
            resize = resize if resize is not None else stored.get("resize", image_size)
        elif resize is None:
            resize = image_size
        predictor = cls(model.to(device), str(bundle), image_size, resize)
        predictor.facts()
        return predictor

    @property
    def class_names(self) -> list[str]:
        """C names."""
        return self.model.class_names

    @property
    def has_graph(self) -> bool:
        """Whether the model is SSGRL with graph propagation."""
        return isinstance(self.model, SSGRL) and self.model.head.interaction

    def to_dtype(self, dtype: str) -> Self:
        """Convert the model in place.

        Args:
            dtype: "float32", "bfloat16", "float64", or "fp8": bfloat16 with the graph's products in e4m3
                (:mod:`ssgrl_fast.modules.fp8`).

        Returns:
            This predictor.

        Raises:
            ValueError: an unknown dtype, or "fp8" and a model that cannot be quantized.
        """
        check_choice("Predictor", "dtype", dtype, DTYPES)
        model = self.model.to(torch.bfloat16 if dtype == "fp8" else getattr(torch, dtype))
        if dtype == "fp8":
            if not isinstance(model, SSGRL):
                raise ValueError(f"{self.source} cannot be quantized to fp8: a {type(model).__name__} has no graph")
            try:
                model.head = model.head.quantize("fp8")
            except ValueError as error:
                raise ValueError(f"{self.source} cannot be quantized to fp8: {error}") from error
        return self

    def facts(self) -> dict[str, Any]:
        """What the scores depend on, for the first part of the JSON.

        Raises:
            BackendUnavailable: a named backend cannot run here.
        """
        model, weight = self.model, next(self.model.head.parameters())
        head = model.head if isinstance(model, SSGRL) else None
        used = "none (no SSGRL head)"
        if head is not None:
            used = backends.chosen(weight.device.type, weight.dtype, head.backend, head.operations)
        return {
            "model": self.source,
            "kind": type(model).__name__,
            "mode": "none (no SSGRL head)" if head is None else head.mode,
            "backend": used,
            "device": str(weight.device),
            "dtype": str(weight.dtype).removeprefix("torch.")
            + (f" and {head.quantized}" if head and head.quantized else ""),
            "image_size": self.image_size,
            "resize": self.resize,
            "normalisation": {"mean": list(model.backbone.mean), "std": list(model.backbone.std)},
            "versions": {"ssgrl_fast": __version__, "torch": torch.__version__},
        }

    def read(self, path: Path) -> Tensor:
        """An image file as input of the network, float32 [3, S, S].

        Raises:
            FileNotFoundError, BrokenImage: naming the file.
        """
        from ssgrl_fast.data.images import read_image
        from ssgrl_fast.data.transforms import eval_transform

        body = self.model.backbone
        return eval_transform(self.image_size, resize=self.resize, mean=body.mean, std=body.std)(read_image(path))

    @torch.inference_mode()
    def scores(self, images: Tensor, *, attention: bool = False) -> tuple[Tensor, Tensor | None]:
        """Logits [B, C] in float32 on the CPU of images [B, 3, S, S], and attention [B, C, h, w] or None.

        Raises:
            ValueError: attention was requested of a model that has none.
        """
        weight = next(self.model.head.parameters())
        images = images.to(weight.device, weight.dtype)
        if not attention:
            return self.model(images).float().cpu(), None
        if not isinstance(self.model, SSGRL):
            raise ValueError(f"{self.source} holds a {type(self.model).__name__}, which has no attention maps")
        logits, maps = self.model(images, return_attention=True)
        return logits.float().cpu(), maps.float().cpu()

    def picture(self, image: Tensor) -> np.ndarray:
        """[H, W, 3] uint8 of a normalised image [3, H, W]."""
        mean, std = (
            torch.tensor(values).view(3, 1, 1) for values in (self.model.backbone.mean, self.model.backbone.std)
        )
        pixels = ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(1, 2, 0).numpy()

    def sample(self, path: Path, targets: np.ndarray | None = None) -> Sample:
        """One row of an attention sheet: the image, its probabilities and its attention maps.

        Raises:
            FileNotFoundError, BrokenImage: naming the file.
            ValueError: the model has no attention maps.
        """
        image = self.read(path)
        logits, maps = self.scores(image[None], attention=True)
        assert maps is not None
        return Sample(self.picture(image), logits[0].sigmoid().numpy(), maps[0].numpy(), targets, path.name)


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """Image files as :func:`search_images` finds them; a line in the log names the files passed over."""
    from ssgrl_fast.data.images import passed_over_text

    files, passed_over = search_images(paths)
    if passed_over:
        _log.warning("%s", passed_over_text(passed_over))
    return files


def search_images(paths: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """Image files: the given files, and those in the given folders and their subfolders, sorted by name in each folder.

    A given file is taken whatever its extension; in a folder, files with the extensions of the formats that Pillow
    decodes are taken, HEIC too if pillow-heif is installed. A file that occurs twice is listed once. Hidden files are
    not looked at.

    Returns:
        The image files, and the files of the folders that were passed over because of their extension.

    Raises:
        FileNotFoundError: a path that does not exist; a folder without any image.
    """
    from ssgrl_fast.data.images import is_image_name, passed_over_text

    files: dict[Path, None] = {}
    passed_over: dict[Path, None] = {}
    for entry in map(Path, paths):
        if entry.is_dir():
            inside = sorted(path for path in entry.rglob("*") if path.is_file() and not path.name.startswith("."))
            images = [path for path in inside if is_image_name(path)]
            others = [path for path in inside if not is_image_name(path)]
            if not images:
                text = passed_over_text(others)
                raise FileNotFoundError(f"{entry}: no image in this folder{f' ({text})' if text else ''}")
            files.update(dict.fromkeys(images))
            passed_over.update(dict.fromkeys(others))
        elif entry.is_file():
            files[entry] = None
        else:
            raise FileNotFoundError(f"{entry}: no such file or folder")
    return list(files), [path for path in passed_over if path not in files]


def predict_files(
    predictor: Predictor,
    files: Sequence[Path],
    *,
    top: int | None = None,
    threshold: float = 0.5,
    batch_size: int = 8,
    overlays: Path | None = None,
    overlay_maps: int = 3,
    skip_broken: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Predict the labels of image files; the result can be written as JSON.

    Args:
        predictor: the model.
        files: in the order of the result.
        top: number of scores to keep per file, the highest; labels are predicted among them alone, as in the paper's
            top-3 setting (4.1). None: all C.
        threshold: probability above which a label is predicted.
        batch_size: images per batch.
        overlays: folder for attention overlays as PNG, ``<number>_<file>_<rank>_<class>.png``; None: none.
        overlay_maps: number of overlays per file, of its highest scores.
        skip_broken: list a broken file under ``broken`` and continue, instead of raising.
        progress: show a progress bar on standard error.

    Returns:
        {"format", the facts of the predictor, "threshold", "top", "class_names", "images", "broken", "files":
        [{"file", "labels", "scores": [{"class", "score" (logit), "probability"}, …] highest first, "overlays"}]}

    Raises:
        BrokenImage, FileNotFoundError: a file that cannot be read, unless skip_broken.
        ValueError: an option out of range, no file at all, or overlays of a model without attention.
    """
    count = len(predictor.class_names)
    for name, value in {"top": top, "batch_size": batch_size, "overlay_maps": overlay_maps}.items():
        if value is not None and value < 1:
            raise ValueError(f"predict: {name} must be at least 1, got {value}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"predict: threshold must be a probability from 0 to 1, got {threshold}")
    if overlays is not None and not isinstance(predictor.model, SSGRL):
        raise ValueError(
            f"predict: {predictor.source} holds a {type(predictor.model).__name__}, which has no attention maps"
        )
    if not files:
        raise ValueError("predict: no image files were given")
    broken: list[dict[str, str]] = []
    rows: list[dict[str, Any]] = []
    for batch in _batches(predictor, _tracked(files, progress), batch_size, broken if skip_broken else None):
        logits, maps = predictor.scores(torch.stack([image for _, _, image in batch]), attention=overlays is not None)
        for index, (number, path, image) in enumerate(batch):
            row = _row(path, logits[index], predictor.class_names, min(top or count, count), threshold)
            if overlays is not None and maps is not None:
                best = row["scores"][:overlay_maps]
                row["overlays"] = _write_overlays(overlays, number, path, predictor, image, maps[index], best)
            rows.append(row)
    return {
        "format": FORMAT,
        **predictor.facts(),
        "threshold": threshold,
        "top": top,
        "class_names": predictor.class_names,
        "images": len(rows),
        "broken": broken,
        "files": rows,
    }


def _batches(
    predictor: Predictor, files: Iterator[Path], batch_size: int, broken: list[dict[str, str]] | None
) -> Iterator[list[tuple[int, Path, Tensor]]]:
    """Files with their numbers, in batches; a broken file raises, or is appended to ``broken`` if that is a list."""
    batch: list[tuple[int, Path, Tensor]] = []
    for number, path in enumerate(files):
        try:
            batch.append((number, path, predictor.read(path)))
        except (BrokenImage, FileNotFoundError) as error:
            if broken is None:
                raise
            broken.append({"file": str(path), "error": str(error)})
            continue
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


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
    predictor: Predictor,
    image: Tensor,
    maps: Tensor,
    best: Sequence[dict[str, Any]],
) -> list[str]:
    pillow = need("PIL.Image", "train", "attention overlays")
    written = []
    for rank, entry in enumerate(best, start=1):
        shown = overlay(predictor.picture(image), maps[predictor.class_names.index(entry["class"])].numpy())
        safe = re.sub(r"[^\w.-]+", "_", entry["class"])
        target = folder / f"{number:05d}_{path.stem}_{rank}_{safe}.png"
        with replacing(target) as part:
            pillow.fromarray(shown).save(part, format="PNG")
        written.append(str(target))
    return written


def _tracked(files: Sequence[Path], progress: bool) -> Iterator[Path]:
    if not progress:
        yield from files
        return
    tools = need("rich.progress", "train", "the progress bar of predict")
    console = need("rich.console", "train", "the progress bar of predict").Console(stderr=True)
    yield from tools.track(files, description="predict", console=console)


def newest_bundle(runs: Path) -> Path:
    """The bundle in a folder of runs that was written last.

    Raises:
        FileNotFoundError: there is none.
    """
    bundles = [path.parent for path in runs.glob("*/version_*/bundle/config.json")]
    if not bundles:
        raise FileNotFoundError(f"no bundle under {runs}/*/version_*/bundle: name one with --model, or run fit first")
    return max(bundles, key=lambda folder: (folder / "config.json").stat().st_mtime)
