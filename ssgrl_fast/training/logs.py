"""What a training says: no advertisements, no warnings that concern nobody, and off a terminal one line per epoch."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities import rank_zero_info

from ssgrl_fast._utils.escape import for_terminal

_WARNINGS = (  # of Lightning, that do not concern users of this task
    ".*does not have many workers.*",
    ".*is smaller than the logging interval.*",
    ".*length of `list` across ranks is zero.*",  # no validation images
    r"Found \d+ module\(s\) in eval mode.*",  # as a frozen backbone is to be
    "Be aware that when using `ckpt_path`, callbacks.*",
    "Experiment logs directory .* exists and is not empty.*",  # a resumed run keeps its log
    "Checkpoint directory .* exists and is not empty.*",
    "You're using the WeightAveraging callback with a model that overrides.*",  # of one device, it is whole
    "You're using the WeightAveraging callback, but loading a checkpoint outside.*",  # which holds the average
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    r"\s*``instantiate_classes`` was deprecated.*",  # Lightning still calls jsonargparse by the old name
    r"\s*By default only one JsonargparseDeprecationWarning.*",  # precedes the first of them
)
_MESSAGES = (  # parts of Lightning's that are advertisements, or say what describe() says
    *("Detected KeyboardInterrupt", "litlogger", "litmodels", "TPU available", "GPU available: False", "Seed set to"),
    *("Loading `train_dataloader` to estimate", "`Trainer.fit` stopped: `max_epochs"),
    "The following callbacks returned in `LightningModule.configure_callbacks`",
)


def quiet() -> None:
    """Keep Lightning's irrelevant warnings and its advertisements from the user; may be called again."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_worth_saying)
    for name in ("lightning.fabric.utilities.seed", "lightning.pytorch.utilities.seed"):
        logging.getLogger(name).addFilter(_is_worth_saying)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Whether a record is none of _MESSAGES; control codes in names of classes and files are taken from it."""
    record.msg, record.args = for_terminal(record.getMessage(), lines=True), ()
    return not any(words in record.msg for words in _MESSAGES)


class EpochLines(Callback):
    """One line after each epoch: training loss, validation mAP in per cent, seconds."""

    def __init__(self) -> None:
        self._began = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Take the time."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Print the line; validation has run."""
        values, parts = trainer.callback_metrics, []
        if "train/loss_epoch" in values:
            parts.append(f"loss {float(values['train/loss_epoch']):.4g}")
        if "val/mAP" in values:
            parts.append(f"validation mAP {100 * float(values['val/mAP']):.1f}")
        parts.append(f"{time.perf_counter() - self._began:.1f} s")
        last = f" of {trainer.max_epochs}" if trainer.max_epochs not in (None, -1) else ""
        rank_zero_info(f"epoch {trainer.current_epoch + 1}{last}: {', '.join(parts)}")


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Callbacks that a task asks its trainer for: off a terminal lines in the place of the progress bar, where there
    is one; and no table of layers, whose counts of operations are zeros for this network, unless the user asked for a
    deeper one."""
    callbacks: list[Callback] = []
    bar = trainer.progress_bar_callback
    if bar is not None and not sys.stdout.isatty():
        bar.disable()
        callbacks.append(EpochLines())
    summaries = [each for each in trainer.callbacks if isinstance(each, ModelSummary)]  # type: ignore[attr-defined]
    return callbacks + [type(each)(max_depth=0) for each in summaries if each._max_depth == 1]
