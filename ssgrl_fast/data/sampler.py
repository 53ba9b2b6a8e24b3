"""The order of an epoch, a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler


class EpochDataset(Protocol):
    """What a data set must offer to be sampled by epochs."""

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None: ...


class EpochSampler(Sampler[int]):
    """Visits every index once an epoch, in an order drawn from (seed, epoch), and tells the data set which epoch it is.

    Neither the global random state nor the epochs that went before matter, so a run resumed at epoch e sees what the
    uninterrupted run saw. Lightning calls ``set_epoch`` by itself; a hand-written loop calls it before each epoch.

    Args:
        dataset: its length is the number of indices; its own ``set_epoch`` is called with the sampler's.
        seed: at least 0.
        shuffle: False visits 0 .. M-1 in order.
    """

    def __init__(self, dataset: EpochDataset, seed: int = 0, *, shuffle: bool = True) -> None:
        if seed < 0:
            raise ValueError(f"EpochSampler: seed must be at least 0, got {seed}")
        self.dataset = dataset
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, for the order and for the data set's random transforms. At least
        0."""
        self.dataset.set_epoch(epoch)
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            yield from range(len(self))
            return
        (state,) = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        yield from torch.randperm(len(self), generator=torch.Generator().manual_seed(int(state))).tolist()


class LazyLoader(DataLoader[dict[str, Any]]):
    """A DataLoader whose iterator starts its workers at the first batch asked for, not before.

    Lightning makes the first iterator of a run before it calls ``set_epoch``. A plain DataLoader with workers would by
    then have drawn its first indices with the epoch still at 0, and a resumed run would begin with the order of the
    wrong epoch.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # torch promises a class of its own
        yield from super().__iter__()
