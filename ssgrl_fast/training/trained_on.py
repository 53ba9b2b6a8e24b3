"""Which images a model was trained on: kept in checkpoints and bundles, named in reports, and refused as test images.

An image is known by its content: 8 bytes of the SHA-256 of its size in bytes and of its first and last 4096 bytes are
kept, so that a list of images can be compared without being published, and the same files are recognised in another
folder or under other names. An image that was written anew is another one. Embedded canvases have no files and are not
recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from ssgrl_fast._utils.arrays import read_array
from ssgrl_fast._utils.files import locked, replacing
from ssgrl_fast.data.base import file_ends
from ssgrl_fast.models.bundle import TRAINED_ON, locate
from ssgrl_fast.training.checkpoint import read_checkpoint

ENTRY = "trained_on"
SEEN = "test images trained on"
"""Line of a report: how many of the test images the model was trained on."""
_END = 4096  # bytes at the beginning and at the end of a file that a mark is made of


def image_marks(dataset: Any) -> np.ndarray | None:
    """A mark of every image file of a data set, int64 [M] in its order; None where images are no files.

    Args:
        dataset: with ``paths``, M files; if it has a method ``ends`` as
            :class:`~ssgrl_fast.data.base.FileDataset`, they are read by it.
    """
    if (paths := getattr(dataset, "paths", None)) is None:
        return None
    read = getattr(dataset, "ends", lambda index, count: file_ends(paths[index], count))
    ends = (read(index, _END) for index in range(len(paths)))
    marks = b"".join(hashlib.sha256(b"%d\0%b" % each).digest()[:8] for each in ends)
    return np.frombuffer(marks, dtype="<i8").astype(np.int64)


def check_apart(trained: np.ndarray, dataset: Any, *, option: str | None) -> str | None:
    """Refuse to measure on images that were trained on, or count them.

    Args:
        trained: marks of :func:`image_marks`.
        dataset: the test images.
        option: what the user gives to measure all the same, for the message; None: it was given.

    Returns:
        A line for the report, with the number of images that were trained on; None where images are no files.

    Raises:
        ValueError: some of the images are among them, and the option was not given; the message names the first few.
    """
    marks = image_marks(dataset)
    if marks is None:
        return None
    rows = np.flatnonzero(np.isin(marks, trained)).tolist()
    if rows and option is not None:
        named = ", ".join(str(dataset.ids[row]) for row in rows[:3]) + (", …" if len(rows) > 3 else "")
        raise ValueError(
            f"{len(rows)} of the {len(marks)} test images were trained on ({named}), so the numbers would not be those "
            f"of unseen images; give {option} to measure them all the same"
        )
    return f"{len(rows)} of {len(marks)}"


def check_bundle(folder: str | Path, dataset: Any, *, option: str | None) -> str | None:
    """The same for a bundle, a folder or Hub repository, that says what it was trained on; None where it does not.

    Raises:
        ValueError: as :func:`check_apart`, or a damaged list of marks.
    """
    path = locate(folder) / TRAINED_ON  # int64 [M], sorted
    if not path.is_file():
        return None
    try:
        trained = read_array(path)
        if trained.dtype != np.int64 or trained.ndim != 1:
            raise ValueError(f"it holds {trained.dtype} {list(trained.shape)}, expected int64 [M]")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not readable as an array of marks: {error}") from error
    return check_apart(trained, dataset, option=option)


class TrainedOn(Callback):
    """Keeps which images a run trains on, and refuses to test them.

    Args:
        run: the run folder, whose bundle gets the marks; None: no bundle.
        allowed: test images that were trained on as well.
    """

    def __init__(self, run: Path | None = None, *, allowed: bool = False) -> None:
        self.run, self.allowed = run, allowed
        self.record: dict[str, Any] | None = None
        self.seen: str | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Note the training images, beside those of the checkpoint that is continued."""
        data: Any = getattr(trainer, "datamodule", None)
        marks = image_marks(data.train_dataset)
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
        bundle = self.run / "bundle"
        with locked(bundle) as alone, replacing(bundle / TRAINED_ON, alone=alone) as part, part.open("wb") as file:
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
        if self.record is not None:
            option = None if self.allowed else "--allow_trained_images true"
            self.seen = check_apart(self.record["marks"].numpy(), data.test_dataset, option=option)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Name the training images in the report."""
        if self.record is not None and pl_module.report is not None:
            details = {**pl_module.report.details, "trained on": describe(self.record)}
            if self.seen is not None:
                details[SEEN] = self.seen
            pl_module.report = replace(pl_module.report, details=details)


def describe(record: Mapping[str, Any]) -> str:
    """A record in words: number, source and checksum of the training images."""
    digest = hashlib.sha256(record["marks"].numpy().astype("<i8").tobytes()).hexdigest()
    return f"{record['images']} images: {record['source']} (SHA-256 {digest[:16]})"
