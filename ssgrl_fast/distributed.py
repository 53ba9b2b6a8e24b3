"""Training on several processes: what makes W of them, with B/W images each, compute what one computes with B.

Strategies average gradients over the processes. A loss summed over all images, or divided by all entries that count,
is therefore W times the process's own sum, divided by the others' entries as well: :func:`share_of_loss`.
"""

from __future__ import annotations

import hashlib

import torch
from lightning.pytorch import Trainer
from torch import Tensor


def share_of_loss(total: Tensor, entries: Tensor, images: int, *, mean: bool, trainer: Trainer) -> tuple[Tensor, int]:
    """A process's share of the loss of a step: the mean of the shares, and of their gradients, is that of one process.

    Args:
        total: the summed loss of this process's images, a scalar; 0 without any.
        entries: how many entries it counts, a scalar, int64.
        images: their number, which may be 0.
        mean: divide by the entries that count, of all processes; False: the loss is a sum over images and classes.
        trainer: a trainer that runs. Every process must call this, once a step.

    Returns:
        The share, W · total (divided by the sum of entries with ``mean``); images of all processes.
    """
    share = trainer.distributed_sampler_kwargs
    processes = share["num_replicas"] if share else 1
    if processes > 1:
        counts = torch.stack([entries, torch.full_like(entries, images)])
        entries, everywhere = trainer.strategy.reduce(counts, reduce_op="sum")
        images = int(everywhere)
    return processes * (total / entries.clamp(min=1) if mean else total), images


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed for what is random in the model, dropout for example: it differs by process, and repeats on resumption."""
    mixed = hashlib.sha256(f"{seed} {epoch} {rank}".encode()).digest()
    return int.from_bytes(mixed[:8], "little") >> 1
