"""Small tasks, data and trainers that several test files share."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ssgrl_fast.training import checkpoint

pytest.importorskip("lightning", reason="the training extra is not installed")

from lightning.pytorch import Trainer
from PIL import Image

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.digits import CLASS_NAMES
from ssgrl_fast.training import runs
from ssgrl_fast.training.task import SSGRLTask

OPTIONS: dict[str, Any] = {"backbone": "small-cnn", "freeze": "none", "joint_dim": 16, "steps": 2, "lr": 1e-3}


def write_words(path: Path, names: Sequence[str] = CLASS_NAMES) -> str:
    """Word vectors of the names as a text file, so that no package of vectors is needed; its path."""
    values = torch.randn(len(names), 8, generator=torch.Generator().manual_seed(0)).tolist()
    path.write_text("".join(f"{name} {' '.join(map(str, row))}\n" for name, row in zip(names, values, strict=True)))
    return str(path)


def fit_command(data: Path, run: Path, **more: Any) -> list[str]:
    """The words of `ssgrl-fast fit` for one epoch of a small network on a COCO set, with further options by name."""
    options = {
        "model.backbone": "small-cnn",
        "model.joint_dim": 8,
        "model.freeze": "all",
        "model.schedule": "constant",
        "data.kind": "coco",
        "data.root": data,
        "data.image_size": 32,
        "data.batch_size": 8,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "run_dir": run,
        **more,
    }
    return ["fit", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def make_task(words: str, **options: Any) -> SSGRLTask:
    """A small network; `words` is a file, the rest as SSGRLTask takes it."""
    return SSGRLTask(**{**OPTIONS, "words": words, **options})


def make_data(**options: Any) -> MultiLabelDataModule:
    """Few digit canvases."""
    return MultiLabelDataModule(**{"counts": (48, 24, 24), "batch_size": 16, **options})


def make_trainer(run: Path | None = None, *, monitor: str | None = "val/mAP", **options: Any) -> Trainer:
    """A quiet trainer, with logs, checkpoints and export where it has a run folder."""
    logs: Any = False if run is None else runs.loggers(run)
    kept: Any = [] if run is None else [*runs.checkpoints(run, monitor), runs.BundleExport(run)]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    plugins = [checkpoint.AtomicCheckpointIO()]
    return Trainer(
        accelerator="cpu",
        logger=logs,
        callbacks=kept,
        enable_checkpointing=run is not None,
        plugins=plugins,
        log_every_n_steps=1,
        **{**quiet, "max_epochs": 2, **options},
    )


def rows(run: Path) -> list[dict[str, str]]:
    """The log of a run."""
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def write_image(path: Path, names: list[str]) -> None:
    """An image and its VOC annotation."""
    Image.new("RGB", (16, 16), (40 * len(names), 100, 20)).save(path)
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    path.with_suffix(".xml").write_text(f"<annotation>{objects}</annotation>")


def digits_command(words: str, parent: Path, workers: int, *more: str) -> list[str]:
    """A command line that fits a small network to embedded digits for three epochs."""
    given = {
        "model.backbone": "small-cnn",
        "model.freeze": "none",
        "model.words": words,
        "model.joint_dim": "16",
        "model.lr": "1e-3",
        "model.plateau_patience": "0",
        "data.counts": "[192,16,16]",
        "data.batch_size": "8",
        "data.num_workers": str(workers),
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": "3",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "run_dir": str(parent),
    }
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "ssgrl_fast", "fit", *options, *more]
