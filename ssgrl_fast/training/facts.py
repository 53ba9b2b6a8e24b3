"""The facts of a training run that its figures depend on, by name, as reports and bundles carry them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer

from ssgrl_fast import backends
from ssgrl_fast.data.splits import selection
from ssgrl_fast.metrics import PRE, Report
from ssgrl_fast.training.options import TaskOptions

LAST_EPOCH = "nothing: the last epoch"
"""What reports and bundles say of weights that no validation image chose."""
OF_TRAINING = ("model", PRE, "words", "graph", "mode", "loss", "optimizer", "schedule", "freeze", "selected on", "seed")
"""The facts that a test takes from its checkpoint and not from the options it is called with."""


def epoch_chosen_on(trainer: Trainer) -> str:
    """Which images chose the epoch that is being saved: validation images if it is the best by one of the trainer's
    checkpoint callbacks, else none."""
    values = trainer.callback_metrics
    for callback in trainer.checkpoint_callbacks:
        monitor, best = getattr(callback, "monitor", None), getattr(callback, "best_model_score", None)
        watched = values.get(monitor) if monitor is not None and monitor.startswith("val/") else None
        if watched is not None and best is not None and float(watched) == float(best):
            return selection(getattr(trainer, "datamodule", None))
    return LAST_EPOCH


def training_facts(
    options: TaskOptions, precision: str, device: torch.device, selected_on: str, transfer: Mapping[str, Any] | None
) -> dict[str, str]:
    """The facts of a run.

    Args:
        options: of the task.
        precision: the trainer's.
        device: where the network is.
        selected_on: which images chose the epoch.
        transfer: the record of the transfer that training started from, or None.
    """
    marks = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    dtype = next((dtype for mark, dtype in marks.items() if mark in precision), torch.float32)
    backend = "none (no SSGRL head)"
    if options.kind == "ssgrl":
        backend = backends.chosen(device, dtype, options.backend)
    return {
        "model": f"{options.kind} on {options.backbone}",
        **({} if transfer is None else {PRE: transfer["summary"]}),
        **words_and_graph_sources(options),
        "mode": options.mode,
        "loss": str(options.loss),
        "optimizer": f"{options.optimizer}, lr {options.lr:g}",
        "schedule": str(options.schedule),
        "freeze": str(options.freeze),
        "backend": backend,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "precision": precision,
        "selected on": selected_on,
        "seed": str(options.seed),
    }


def naming_images(report: Report, trainer: Trainer) -> Report:
    """The report of a test with the names of the tested images; unchanged if those have no names, or were not tested
    once each."""
    tested = getattr(getattr(trainer, "datamodule", None), "test_dataset", None)
    ids, labels = (getattr(tested, name, None) for name in ("ids", "labels"))
    if ids is None or labels is None or len(ids) != report.images:
        return report
    return report.naming(ids, labels)


def words_and_graph_sources(options: TaskOptions) -> dict[str, str]:
    """Where word vectors and graph come from, for a report; nothing for kind "pooling"."""
    if options.kind == "pooling":
        return {}
    counted = f"training labels, diagonal {options.graph_diagonal:g}"
    return {"words": str(options.words), "graph": str(options.graph or counted)}
