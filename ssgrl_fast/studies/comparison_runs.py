"""The training runs of :mod:`ssgrl_fast.studies.comparison`: Lightning on cached features."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor

from ssgrl_fast import backends
from ssgrl_fast._version import __version__
from ssgrl_fast.data.base import FileDataset
from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.feature_module import FeatureDataModule
from ssgrl_fast.data.features import CachedFeatures, cache_features
from ssgrl_fast.metrics import average_precision
from ssgrl_fast.models.backbones import build_backbone, freeze_backbone
from ssgrl_fast.models.prepare import prepare_backbone
from ssgrl_fast.studies.comparison_settings import MODELS, Candidate, Settings
from ssgrl_fast.studies.scores import Log, final, percentages
from ssgrl_fast.studies.trials import ValidationCurve, quiet_trainer
from ssgrl_fast.training.task import SSGRLTask

_IMAGES = 2  # per batch of the backbone: larger batches leave the cache of a CPU (2.5 times slower at 16)


class ComparisonRuns:
    """The features of all images, training images first, and models trained on some rows of them.

    Args:
        settings: of the comparison.
        log: called with a line of text when the features are ready and after each candidate.

    Attributes:
        train_rows, test_rows: rows of the features.
        labels: int8 [M, C].
        ids: M names of the images.

    Raises:
        ValueError: the data set has no test split.
    """

    def __init__(self, settings: Settings, log: Log) -> None:
        self.settings, self.log = settings, log
        size = settings.image_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of a backbone without pretrained weights
            body = freeze_backbone(build_backbone(settings.backbone), "all").eval()
        transform: dict[str, Any] = {"image_size": size, "resize": size, "crops": [size], "flip": True}
        data = MultiLabelDataModule("voc", root=settings.root, mean=body.mean, std=body.std, **transform)
        train, test = data.train_dataset, data.test_dataset
        if not isinstance(train, FileDataset) or not isinstance(test, FileDataset):
            raise ValueError(f"compare: {settings.root} has no test split")
        self.train_rows = list(range(len(train)))
        self.test_rows = list(range(len(train), len(train) + len(test)))
        self.cached: CachedFeatures = cache_features(
            train.joined(test),
            body,
            settings.features,
            name=settings.backbone,
            batch_size=_IMAGES,
            prepare=prepare_backbone,
        )
        self.labels, self.ids = self.cached.labels, self.cached.ids
        log(f"{len(train)} training and {len(test)} test images, features in {self.cached.store}")

    def facts(self) -> dict[str, Any]:
        """What the results depend on beside the settings."""
        return {
            "training images": len(self.train_rows),
            "test images": len(self.test_rows),
            "classes": len(self.cached.class_names),
            "backend": backends.chosen("cpu", torch.float32, self.settings.backend),
            "dtype": "float32",
            "ssgrl_fast": __version__,
            "torch": torch.__version__,
        }

    def candidate(
        self, name: str, rate: float, epochs: int, train_rows: Sequence[int], val_rows: Sequence[int]
    ) -> Candidate:
        """Train a model with one peak learning rate and number of epochs, once per seed of the search, and validate it
        after each epoch."""
        began, curves = time.perf_counter(), [ValidationCurve() for _ in range(self.settings.search_seeds)]
        for seed, curve in enumerate(curves):
            self._fit(name, rate, epochs, train_rows, seed, val_rows, [curve])
        mean = np.mean([curve.values for curve in curves], axis=0).tolist()
        seconds = time.perf_counter() - began
        self.log(f"  {MODELS[name].title} {rate:g}: validation {percentages(mean)} ({seconds:.0f} s)")
        return Candidate(rate, epochs, mean, final(mean))

    def logits(
        self, name: str, chosen: Candidate, train_rows: Sequence[int], test_rows: Sequence[int], seed: int
    ) -> Tensor:
        """Train a model with the chosen candidate: its logits on the test rows, [len(test_rows), C]."""
        model = self._fit(name, chosen.rate, chosen.epochs, train_rows, seed).model.eval()
        test = self.cached.select(test_rows, flip=False)
        data = FeatureDataModule(self.cached.select(train_rows), test=test, batch_size=32)
        with torch.inference_mode():
            return torch.cat([model.head(batch["features"]) for batch in data.test_dataloader()])

    def mean_ap(self, logits: Tensor, rows: Sequence[int]) -> float:
        """mAP over the classes that have positives in these rows."""
        values = average_precision(logits, self.labels[list(rows)], definition=self.settings.ap_definition)
        return float(values.nanmean())

    def _fit(
        self,
        name: str,
        rate: float,
        epochs: int,
        train_rows: Sequence[int],
        seed: int,
        val_rows: Sequence[int] | None = None,
        callbacks: list[Callback] | None = None,
    ) -> SSGRLTask:
        s, options = self.settings, dict(MODELS[name].options)
        if options["kind"] == "ssgrl":
            options |= {"words": s.words, "joint_dim": s.joint_dim, "backend": s.backend}
        options |= {"mode": s.mode, "ap_definition": s.ap_definition}
        task = SSGRLTask(
            backbone=s.backbone,
            freeze="all",
            loss="sum",
            schedule="onecycle",
            difficult="ignore",
            lr=rate,
            seed=seed,
            **options,
        )
        data = FeatureDataModule(
            self.cached.select(train_rows, flip=True),
            None if val_rows is None else self.cached.select(val_rows, flip=False),
            batch_size=s.batch_size,
            seed=seed,
        )
        trainer = quiet_trainer(max_epochs=epochs, callbacks=callbacks or [], num_sanity_val_steps=0)
        trainer.fit(task, datamodule=data)
        trainer.optimizers = []  # the task refers to its trainer, which would keep Adam's moments in memory
        return task
