"""Averaged weights (an exponential moving average), under every strategy: each process averages what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor


class AveragedWeights(Callback):
    """After every step ``average ← decay · average + (1 − decay) · weights``; the first step's weights begin it.

    The average is what is validated, what a checkpoint's ``state_dict`` and the bundle hold, and what is left after
    training; training goes on from the weights themselves, which a checkpoint keeps as ``current_model_state``. That is
    Lightning's ``EMAWeightAveraging``, its layout of checkpoints included; unlike it this one takes sharded weights,
    where Lightning's makes a deep copy of the module, which ``fully_shard`` refuses. Buffers of floating point are
    averaged as well, others copied.

    Args:
        decay: from 0 to below 1; the average forgets over 1 / (1 − decay) steps.

    Raises:
        ValueError: another decay.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"AveragedWeights: decay must be from 0 to below 1, got {decay}")
        self.decay = decay
        self._average: list[Tensor] = []
        self._steps, self._seen = 0, 0  # steps averaged; the trainer's steps at the last of them

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for the average, unless a checkpoint has brought one."""
        if not self._average:
            self._average = _copies(pl_module)
            self._steps, self._seen = 0, trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        """Take the weights of a step into the average."""
        if trainer.global_step == self._seen:  # gradients are accumulated
            return
        for mine, theirs in zip(self._average, _local(pl_module), strict=True):
            if self._steps and mine.is_floating_point():
                mine.lerp_(theirs, 1 - self.decay)
            else:
                mine.copy_(theirs)
        self._steps, self._seen = self._steps + 1, trainer.global_step

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the weights, in a fit."""
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model."""
        self._swap(pl_module)
        self._average = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the average as the model, and the weights beside it; every process takes part."""
        if not self._average:
            return
        checkpoint["current_model_state"] = checkpoint["state_dict"]
        self._swap(pl_module)
        averaged = trainer.strategy.lightning_module_state_dict()
        checkpoint["state_dict"] = {name: value.clone() for name, value in averaged.items()}
        self._swap(pl_module)
        checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self._steps)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the average, which the model was just given, and give the model its weights."""
        if trainer.state.fn != "fit":
            return
        self._average, self._seen = _copies(pl_module), int(checkpoint["global_step"])
        self._steps = int(checkpoint.get("averaging_state", {}).get("n_averaged", 0))
        if "current_model_state" not in checkpoint:
            rank_zero_warn("AveragedWeights: the checkpoint holds no average; it begins with the next step")
            return
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(pl_module, checkpoint["current_model_state"], options=options)

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        for mine, theirs in zip(self._average, _local(pl_module) if self._average else (), strict=True):
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)


def _local(module: LightningModule) -> Iterator[Tensor]:
    """What this process holds of every parameter and buffer; written to, it changes the model."""
    for tensor in (*module.parameters(), *module.buffers()):
        data = tensor.detach()
        yield data.to_local() if isinstance(data, DTensor) else data


def _copies(module: LightningModule) -> list[Tensor]:
    return [tensor.clone() for tensor in _local(module)]
