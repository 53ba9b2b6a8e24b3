"""Training on several processes: what makes W of them, with B/W images each, compute what one computes with B.

Strategies average gradients over the processes. A loss summed over all images, or divided by all entries that count,
is therefore W times the process's own sum, divided by the others' entries as well: :func:`share_of_loss`.

Under :class:`ShardedStrategy` (``--trainer.strategy fsdp2``) each process keeps 1/W of every weight, of its gradient
and of the optimizer's state. The backbone and the three parts of the head are put together when they run, one at a
time, so the fused operations find whole weights as everywhere.
"""

from __future__ import annotations

import hashlib
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


class ShardedStrategy(ModelParallelStrategy):
    """PyTorch's fully sharded data parallelism (``fully_shard``) over all processes; checkpoints are single files, as
    those of every other strategy. Registered as "fsdp2".

    Args:
        options: ``process_group_backend`` and ``timeout`` of Lightning's ModelParallelStrategy.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        """Join the other processes, all in one dimension."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


StrategyRegistry.register("fsdp2", ShardedStrategy, "weights, gradients and optimizer state spread over all processes")


def share_of_loss(total: Tensor, entries: Tensor, images: int, *, mean: bool, trainer: Trainer) -> tuple[Tensor, int]:
    """A process's share of the loss of one step: the mean of all shares, and of their gradients, is what a single
    process computes.

    Args:
        total: the summed loss of this process's images, a scalar; 0 without any.
        entries: how many entries it counts, a scalar, int64.
        images: their number, which may be 0.
        mean: divide by the entries that count, of all processes; False: the loss is a sum over images and classes.
        trainer: a trainer that runs. Every process must call this, once per step.

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


def warn_of_batch_norm(network: nn.Module, trainer: Trainer) -> None:
    """Say that processes normalise apart, where a BatchNorm that is not synchronised trains on several of them."""
    kinds = [type(module) for module in network.modules() if module.training]
    apart = [kind for kind in kinds if issubclass(kind, nn.modules.batchnorm._BatchNorm)]
    alone = [kind for kind in apart if kind is not nn.SyncBatchNorm]
    if alone and trainer.world_size > 1:
        rank_zero_warn(
            f"{len(alone)} BatchNorm layers train, in each process on its own images, so the batch size of a process "
            "matters; strategy ddp with --trainer.sync_batchnorm true (GPUs only) lets them see all images of a step"
        )


def shard_network(network: nn.Module, strategy: Any) -> None:
    """Spread the weights of a network over the processes, if the strategy is one that spreads them; in place.

    Args:
        network: ``SSGRL``, ``GlobalPoolingClassifier`` or the head of one, if that alone will run (on cached features);
            perhaps sharded already.
        strategy: the trainer's.

    Raises:
        ValueError: a ModelParallelStrategy that splits layers, or that saves folders for checkpoints; FSDPStrategy,
            PyTorch's earlier form of the same.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(
            "SSGRLTask: strategy 'fsdp' flattens weights, which optimizer groups and bundles need in their shapes; use "
            "'fsdp2'"
        )
    if not isinstance(strategy, ModelParallelStrategy) or is_sharded(network):
        return
    if strategy.device_mesh["tensor_parallel"].size() != 1 or strategy._save_distributed_checkpoint:
        raise ValueError(
            "SSGRLTask: ModelParallelStrategy needs tensor_parallel_size=1 and save_distributed_checkpoint=False, as "
            "strategy 'fsdp2' has them"
        )
    network.to(memory_format=torch.contiguous_format)  # fully_shard takes no other
    head = getattr(network, "head", network)
    units = [*head.children(), head]
    units += [] if head is network else [network.get_submodule("backbone"), network]
    for unit in units:
        if any(True for _ in unit.parameters()):
            fully_shard(unit, mesh=strategy.device_mesh["data_parallel"])


def is_sharded(module: nn.Module) -> bool:
    """Whether weights of a module are spread over processes by :func:`shard_network`."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's buffers (statistics of BatchNorm), where weights are sharded; DDP does it."""
    if is_sharded(module):
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def whole_task(task: LightningModule, trainer: Trainer) -> LightningModule | None:
    """The task with whole weights, on the first process; None on the others, all of which must call this.

    Where weights are sharded it is a copy, on the CPU; else the task itself.
    """
    if not is_sharded(task):
        return task if trainer.is_global_zero else None
    state = get_model_state_dict(task, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not trainer.is_global_zero:
        return None
    twin = type(task)(**task.hparams)
    cast(Any, twin).build_like(task)
    twin.load_state_dict(state)
    return twin
