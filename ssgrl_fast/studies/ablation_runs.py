"""The training runs of :mod:`ssgrl_fast.studies.ablations`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.studies.trials import ValidationCurve, quiet_trainer
from ssgrl_fast.training.task import SSGRLTask


class AblationRuns:
    """Single trainings by one recipe.

    Args:
        model: options of SSGRLTask; those of a variant replace them.
        data: options of MultiLabelDataModule.
        trainer: options of lightning's Trainer.

    Attributes:
        facts: what the test results depend on, known after the first call of :meth:`test`.
        rules: "definition" and "difficult" of the recipe's average precision, known then too.
    """

    def __init__(self, model: Mapping[str, Any], data: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
        self.model, self.data, self.trainer = dict(model), dict(data), dict(trainer)
        self.facts: dict[str, str] = {}
        self.rules: dict[str, Any] = {}

    def check_data(self, searched: Sequence[str]) -> None:
        """Check that the recipe has test images, and validation images if learning rates are to be searched.

        Args:
            searched: the variants whose learning rate is to be searched.

        Raises:
            ValueError: it has not.
        """
        data = MultiLabelDataModule(**self.data)
        if searched and not data.has_val:
            raise ValueError(
                "ablate: learning rates are chosen on validation images, and the recipe has none: give "
                f"data.val_fraction, data.val_split, or rates for {', '.join(searched)}"
            )
        if data.test_dataset is None:
            raise ValueError("ablate: the recipe's data have no test split; give data.test_split, or data.folds")

    def curve(self, options: Mapping[str, Any], rate: float, seed: int) -> list[float]:
        """Train a variant with one learning rate: validation mAP after each epoch, fractions."""
        curve = ValidationCurve()
        self._fit(options, rate, seed, [curve])
        return curve.values

    def test(self, options: Mapping[str, Any], rate: float, seed: int) -> tuple[Tensor, Tensor]:
        """Train a variant: the logits of the test images after the last epoch, and their labels, both [M, C]."""
        trainer, task, data = self._fit(options, rate, seed, [])
        trainer.test(task, datamodule=data, verbose=False)
        facts = {**task.recipe(), "epochs": str(trainer.max_epochs), "training images": str(len(data.train_dataset))}
        if facts["model"].startswith("ssgrl") or not self.facts:
            self.facts = {key: value for key, value in facts.items() if key not in ("seed", "model", "lr")}
            self.facts["backbone"] = str(self.model["backbone"])
        self.rules = {"definition": task.options.ap_definition, "difficult": task.options.difficult}
        return torch.cat(task.val_ap.scores).cpu(), torch.cat(task.val_ap.targets).cpu()

    def _fit(
        self, options: Mapping[str, Any], rate: float, seed: int, callbacks: list[Callback]
    ) -> tuple[Trainer, SSGRLTask, MultiLabelDataModule]:
        task = SSGRLTask(**{**self.model, **options, "lr": rate, "seed": seed})
        data = MultiLabelDataModule(**{**self.data, "seed": seed})
        # without a curve to record, validation serves the schedule "plateau" alone
        limits = {} if callbacks or task.hparams["schedule"] == "plateau" else {"limit_val_batches": 0}
        trainer = quiet_trainer(**{"num_sanity_val_steps": 0, **self.trainer, **limits, "callbacks": callbacks})
        if trainer.world_size > 1:
            raise ValueError(
                f"ablate: {trainer.world_size} processes, expected one, which has the scores of all test images: "
                "--trainer.devices 1"
            )
        trainer.fit(task, datamodule=data)
        return trainer, task, data
