"""What ``compare`` and ``ablate`` share: how a curve becomes a score, and seeds become one figure."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

_EXPECTED = (  # warnings that tell such a command nothing
    ".*does not have many workers.*",
    ".*length of `list` across ranks is zero.*",  # no validation images
    ".*isinstance.treespec, LeafSpec.*",  # lightning 2.6 under torch 2.14
    r"Found \d+ module.*eval.*",  # a frozen backbone
)


def quiet_trainer(**options: Any) -> Trainer:
    """A trainer without logger, bars, summary or checkpoints, on the CPU where options do not say otherwise; they are
    Trainer's own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return Trainer(**{"accelerator": "cpu", "devices": 1, **options, **quiet})


class ValidationCurve(Callback):
    """Keeps the mAP of the validation images, a fraction, after each epoch in ``values``."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by the trainer."""
        self.values.append(float(trainer.callback_metrics["val/mAP"]))


Say = Callable[[str], None]


def final(curve: Sequence[float]) -> float:
    """The mean of the last three values, or of all where there are fewer."""
    return float(np.mean(curve[-3:]))


def deviation(values: Sequence[float]) -> float | None:
    """The sample deviation; None of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def spread(values: Sequence[float]) -> str:
    """Mean ± sample deviation of fractions in per cent; the mean alone of one value."""
    found = deviation(values)
    return f"{100 * np.mean(values):.1f}" + ("" if found is None else f" ± {100 * found:.1f}")
