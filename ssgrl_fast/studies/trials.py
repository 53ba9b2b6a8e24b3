"""Single trainings of a study: a trainer that prints nothing, and the validation curve it leaves."""

from __future__ import annotations

import gc
import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ssgrl_fast.training.logs import quiet


def quiet_trainer(**options: Any) -> Trainer:
    """A trainer without logger, progress bar, summary or checkpoints.

    Args:
        options: of lightning's Trainer; one CPU is used unless they name other devices.
    """
    gc.collect()  # an earlier trainer and its task refer to each other, and keep data and Adam's moments
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    quiet()
    without = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(**{"accelerator": "cpu", "devices": 1, **options, **without})


class ValidationCurve(Callback):
    """Collects the mAP on the validation images after each epoch.

    Attributes:
        values: fractions, one per epoch.
    """

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Append the epoch's mAP; called by the trainer."""
        self.values.append(float(trainer.callback_metrics["val/mAP"]))
