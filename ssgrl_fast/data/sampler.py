"""The order of images in an epoch, a function of (seed, epoch) alone, and the share that each process visits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from ssgrl_fast._utils.signals import obey_only_the_parent


class EpochDataset(Protocol):
    """What a data set must offer to be sampled by epochs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def set_epoch(self, epoch: int) -> None: ...


class EpochSampler(DistributedSampler[int]):
    """Visits every index once per epoch, in an order drawn from (seed, epoch), and tells the data set the epoch.

    Neither the global random state nor the epochs that went before matter, so a run resumed at epoch e sees what the
    uninterrupted run saw. Lightning calls ``set_epoch`` by itself; a hand-written loop calls it before each epoch.

    Of several processes each visits every W-th place of that one order, so that their k-th batches together hold the
    images of the k-th batch of a single process with W times the batch size. A share that is one image short ends with
    a place-holder, ``~index`` of some image: all processes then have equally many batches, as collective operations
    need, and still no image is seen twice (:func:`epoch_loader`). Lightning leaves such a sampler as it is.

    Args:
        dataset: its length is the number of indices; its own ``set_epoch`` is called with the sampler's.
        seed: at least 0.
        shuffle: False visits 0 .. M-1 in order.
        drop_last: with several processes, leave out what cannot be shared evenly, in place of place-holders.
        rank: which process this is, 0 .. W-1.
        processes: W.

    Raises:
        ValueError: a negative seed, or a rank outside 0 .. W-1.
    """

    dataset: Any

    def __init__(
        self,
        dataset: EpochDataset,
        seed: int = 0,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if seed < 0:
            raise ValueError(f"EpochSampler: seed must be at least 0, got {seed}")
        if not 0 <= rank < processes:
            raise ValueError(f"EpochSampler: rank must be in 0 .. {processes - 1}, got {rank} of {processes} processes")
        whole: Any = dataset
        super().__init__(whole, processes, rank, shuffle=shuffle, seed=seed, drop_last=drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, for the order and for the data set's random transforms. At least
        0."""
        self.dataset.set_epoch(epoch)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self.dataset)))
        if self.shuffle:
            (state,) = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(int(state))).tolist()
        share = order[self.rank : self.num_samples * self.num_replicas : self.num_replicas]
        yield from share
        yield from [~order[0]] * (len(self) - len(share))


class LazyLoader(DataLoader[dict[str, Any]]):
    """A DataLoader whose iterator starts its workers when the first batch is requested, not before.

    Lightning makes the first iterator of a run before it calls ``set_epoch``. A plain DataLoader with workers would by
    then have drawn its first indices with the epoch still at 0, and a resumed run would begin with the order of the
    wrong epoch.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]  # torch declares its own iterator class
        yield from super().__iter__()


def epoch_loader(
    dataset: EpochDataset, batch_size: int, seed: int = 0, *, shuffle: bool, trainer: Any = None, **options: Any
) -> LazyLoader:
    """Batches of an epoch: of all images, or of this process's share of them where the trainer has several processes.

    Place-holders (see :class:`EpochSampler`) leave their batch. One that would leave it empty stays, and the batch says
    so: ``"placeholder"`` is then True, and the image is for going through the network only, not for loss or metrics.

    Args:
        dataset: items are dicts; "index" of one is its index.
        batch_size: of this process.
        seed, shuffle: see :class:`EpochSampler`.
        trainer: a Lightning trainer that runs, or None.
        options: DataLoader's own: num_workers, drop_last, ….
    """
    share = getattr(trainer, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
    rank, processes = share["rank"], share["num_replicas"]
    drop_last = options.get("drop_last", False)
    sampler = EpochSampler(dataset, seed, shuffle=shuffle, drop_last=drop_last, rank=rank, processes=processes)
    items: Any = dataset
    if processes > 1:
        items, options = _WithPlaceholders(dataset), {**options, "collate_fn": _without_placeholders}
    return LazyLoader(items, batch_size, sampler=sampler, worker_init_fn=obey_only_the_parent, **options)


class _WithPlaceholders(Dataset[dict[str, Any]]):
    """A data set that also answers to ``~index``, with the item of that image under this negative index."""

    def __init__(self, dataset: EpochDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[index] if index >= 0 else {**self.dataset[~index], "index": index}


def _without_placeholders(items: list[dict[str, Any]]) -> dict[str, Any]:
    real = [item for item in items if item["index"] >= 0]
    return default_collate(real) if real else {**default_collate(items[:1]), "placeholder": True}
