"""Which images a model was trained on: kept in checkpoints and bundles, named in reports, and refused as test images.

An image is known by its path relative to the folder of its data set and by its size in bytes; 8 bytes of the SHA-256 of
both are kept, so that a list of images can be compared without being published. The same image under another path, or
written anew with another size, is another one. Embedded canvases have no files and are not recorded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from ssgrl_fast._utils.files import replacing
from ssgrl_fast.models.bundle import TRAINED_ON
from ssgrl_fast.training.checkpoint import read_checkpoint

ENTRY = "trained_on"


def image_marks(dataset: Any, root: str | None) -> np.ndarray | None:
    """A mark of every image file of a data set, int64 [M] in its order; None where images are no files.

    Args:
        dataset: with ``paths``, M files.
        root: the folder of the data set, or its table.
    """
    paths: Sequence[Path] | None = getattr(dataset, "paths", None)
    if paths is None or root is None:
        return None
    folder = os.path.dirname(os.path.abspath(root)) if os.path.isfile(root) else os.path.abspath(root)
    names = (Path(os.path.relpath(os.path.abspath(path), folder)).as_posix() for path in paths)
    known = (f"{name}\0{os.path.getsize(path)}" for name, path in zip(names, paths, strict=True))
    marks = b"".join(hashlib.sha256(os.fsencode(text)).digest()[:8] for text in known)
    return np.frombuffer(marks, dtype="<i8").astype(np.int64)


def check_apart(trained: np.ndarray, dataset: Any, root: str | None, *, option: str) -> None:
    """Refuse to measure on images that were trained on.

    Args:
        trained: marks of :func:`image_marks`.
        dataset: the test images.
        root: their folder or table.
        option: what the user gives to measure all the same; for the message.

    Raises:
        ValueError: some of the images are among them; the message names the first few.
    """
    marks = image_marks(dataset, root)
    if marks is None:
        return
    rows = np.flatnonzero(np.isin(marks, trained)).tolist()
    if rows:
        named = ", ".join(str(dataset.ids[row]) for row in rows[:3]) + (", …" if len(rows) > 3 else "")
        raise ValueError(
            f"{len(rows)} of the {len(marks)} test images were trained on ({named}), so the numbers would not be those "
            f"of unseen images; give {option} to measure them all the same"
        )


def check_bundle(folder: str | Path, dataset: Any, root: str | None, *, option: str) -> None:
    """The same for a bundle that says what it was trained on; nothing for one that does not.

    Raises:
        ValueError: as :func:`check_apart`, or a damaged list of marks.
    """
    path = Path(folder) / TRAINED_ON  # int64 [M], sorted
    if path.is_file():
        try:
            trained = np.load(path, allow_pickle=False)
        except (EOFError, ValueError, OSError) as error:
            raise ValueError(f"{path}: not readable as an array of marks: {error}") from error
        check_apart(trained, dataset, root, option=option)


class TrainedOn(Callback):
    """Keeps which images a run trains on, and refuses to test them.

    Args:
        run: the run folder, whose bundle gets the marks; None: no bundle.
        allowed: test images that were trained on as well.
    """

    def __init__(self, run: Path | None = None, *, allowed: bool = False) -> None:
        self.run, self.allowed = run, allowed
        self.record: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Note the training images, beside those of the checkpoint that is continued."""
        data: Any = getattr(trainer, "datamodule", None)
        options = getattr(data, "options", None)
        marks = image_marks(data.train_dataset, getattr(options, "root", None))
        if marks is None:
            return
        earlier = None if trainer.ckpt_path is None else read_checkpoint(str(trainer.ckpt_path)).get(ENTRY)
        if earlier is not None:
            marks = np.concatenate([earlier["marks"].numpy(), marks])
        kept = np.unique(marks)
        self.record = {"source": data.train_source, "images": len(kept), "marks": torch.from_numpy(kept)}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the record into the checkpoint."""
        if self.record is not None:
            checkpoint[ENTRY] = self.record

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Put the marks into the bundle that the run has exported."""
        if self.record is None or self.run is None or not trainer.is_global_zero or not (self.run / "bundle").is_dir():
            return
        marks: Tensor = self.record["marks"]
        with replacing(self.run / "bundle" / TRAINED_ON) as part, part.open("wb") as file:
            np.save(file, marks.numpy())

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Compare the test images with those of the checkpoint.

        Raises:
            ValueError: as :func:`check_apart`.
        """
        if trainer.ckpt_path is None:
            return
        self.record = read_checkpoint(str(trainer.ckpt_path)).get(ENTRY)
        data: Any = getattr(trainer, "datamodule", None)
        if self.record is not None and not self.allowed:
            trained = self.record["marks"].numpy()
            check_apart(trained, data.test_dataset, data.options.root, option="--allow_trained_images true")

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Name the training images in the report."""
        if self.record is not None and pl_module.report is not None:
            details = {**pl_module.report.details, "trained on": describe(self.record)}
            pl_module.report = replace(pl_module.report, details=details)


def describe(record: Mapping[str, Any]) -> str:
    """A record in words: number, source and checksum of the training images."""
    digest = hashlib.sha256(record["marks"].numpy().astype("<i8").tobytes()).hexdigest()
    return f"{record['images']} images: {record['source']} (SHA-256 {digest[:16]})"
