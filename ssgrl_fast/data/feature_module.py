"""Cached features as a LightningDataModule, for many short trainings on one store."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ssgrl_fast._utils.checks import need

need("lightning", "train", "ssgrl_fast.data.feature_module")
from lightning.pytorch import LightningDataModule  # noqa: E402

from ssgrl_fast.data.features import CachedFeatures  # noqa: E402
from ssgrl_fast.data.sampler import LazyLoader, epoch_loader  # noqa: E402


class FeatureDataModule(LightningDataModule):
    """Parts of cached features as training, validation and test data, for many short runs on one store (folds, seeds).

    Args:
        train, val, test: parts (``CachedFeatures.select``); val and test may be left out.
        batch_size: of all loaders.
        seed: of the order of training, with the epoch.
    """

    def __init__(
        self,
        train: CachedFeatures,
        val: CachedFeatures | None = None,
        test: CachedFeatures | None = None,
        *,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.train_dataset, self.val_dataset, self.test_dataset = train, val, test
        self.batch_size, self.seed = batch_size, seed

    @property
    def class_names(self) -> list[str]:
        """C names."""
        return self.train_dataset.class_names

    @property
    def train_labels(self) -> Tensor:
        """int8 [M, C] of the training part."""
        return self.train_dataset.labels

    def train_dataloader(self) -> LazyLoader:
        """Batches in an order drawn from (seed, epoch)."""
        return epoch_loader(self.train_dataset, self.batch_size, self.seed, shuffle=True, trainer=self.trainer)

    def val_dataloader(self) -> LazyLoader | list[dict[str, Any]]:
        """Batches in order; nothing without a validation part."""
        return [] if self.val_dataset is None else self._in_order(self.val_dataset)

    def test_dataloader(self) -> LazyLoader | list[dict[str, Any]]:
        """Batches in order; nothing without a test part."""
        return [] if self.test_dataset is None else self._in_order(self.test_dataset)

    def _in_order(self, part: CachedFeatures) -> LazyLoader:
        return epoch_loader(part, self.batch_size, shuffle=False, trainer=self.trainer)
