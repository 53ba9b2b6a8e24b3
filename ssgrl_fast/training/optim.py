"""Optimizers and learning-rate schedules of the recipes: the paper's, the published code's, and the modern one's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from ssgrl_fast._utils.options import check_fields
from ssgrl_fast.training.options import OptimizerOptions, ScheduleOptions

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler

    from ssgrl_fast.models import SSGRL, GlobalPoolingClassifier

WARM_UP = 0.05  # share of the steps that "cosine" rises over


def make_optimizer(head: Iterable[Parameter], body: Iterable[Parameter], options: OptimizerOptions) -> Optimizer:
    """Adam (section 3.5, D18) or AdamW over what is not frozen: groups of the head first, then the backbone's.

    Under "adamw" vectors (biases, the weights of BatchNorm) are in groups of their own without weight decay, as ASL and
    ML-Decoder train; Adam's L2 term applies to all parameters.

    Args:
        head: parameters outside the backbone; those with requires_grad False are left out.
        body: the backbone's.
        options: optimizer, lr, head_lr, betas, weight_decay; freeze for the message.

    Raises:
        ValueError: an unknown optimizer, or nothing is left to train.
    """
    check_fields("make_optimizer", options)
    groups: list[dict[str, Any]] = []
    head_lr = options.lr if options.head_lr is None else options.head_lr
    for parameters, rate in ((head, head_lr), (body, options.lr)):
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if options.optimizer == "adam":
            groups.append({"params": trained, "lr": rate})
        else:
            groups.append({"params": [p for p in trained if p.dim() > 1], "lr": rate})
            groups.append({"params": [p for p in trained if p.dim() <= 1], "lr": rate, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError(f"SSGRLTask: freeze={options.freeze!r} leaves no parameter to train")
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    betas = (options.betas[0], options.betas[1])
    return kind(groups, lr=options.lr, betas=betas, weight_decay=options.weight_decay, fused=True)


def make_schedule(optimizer: Optimizer, options: ScheduleOptions, steps: Callable[[], float]) -> LRScheduler | None:
    """The schedule of the learning rate; None for "constant" (D17).

    - "plateau" divides by 10 (``plateau_factor``) when the watched value no longer improves (section 3.5); stepped
      once per epoch with that value.
    - "onecycle" rises over 15 % of the steps to the group's rate and falls to nothing, half cosines both.
    - "cosine" rises in a line over the first 5 % of the steps and falls to 0 by half a cosine.

    The last two are stepped with every batch.

    Args:
        optimizer: of :func:`make_optimizer`.
        options: schedule, plateau_monitor, plateau_factor, plateau_patience.
        steps: returns the number of optimizer steps of the whole training; called for the last two only.

    Raises:
        ValueError: an unknown schedule, or "onecycle" or "cosine" in a training without an end.
    """
    kind = options.schedule
    check_fields("make_schedule", options)
    if kind == "constant":
        return None
    if kind == "plateau":
        return ReduceLROnPlateau(
            optimizer,
            "min" if options.plateau_monitor.endswith("loss") else "max",
            factor=options.plateau_factor,
            patience=options.plateau_patience,
        )
    total = steps()
    if math.isinf(total):
        raise ValueError(f"make_schedule: schedule {kind!r} needs an end of the training: set max_epochs or max_steps")
    count = int(total)
    if kind == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, peaks, count, pct_start=0.15, cycle_momentum=False)
    return LambdaLR(optimizer, lambda step: cosine_share(step, count))


def cosine_share(step: int, steps: int) -> float:
    """The fraction of its peak that the learning rate of "cosine" has at one step, 0 … steps."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))


def lightning_schedule(optimizer: Optimizer, schedule: LRScheduler | None, monitor: str) -> OptimizerLRScheduler:
    """What Lightning's configure_optimizers returns for this optimizer and schedule."""
    if schedule is None:
        return optimizer
    if isinstance(schedule, ReduceLROnPlateau):
        entry: LRSchedulerConfigType = {"scheduler": schedule, "monitor": monitor, "strict": False}
    else:
        entry = {"scheduler": schedule, "interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": entry}


def split_parameters(network: SSGRL | GlobalPoolingClassifier) -> tuple[Sequence[Parameter], Sequence[Parameter]]:
    """The parameters outside network.backbone, and those in it."""
    body = list(network.backbone.parameters())
    inside = {id(parameter) for parameter in body}
    return [parameter for parameter in network.parameters() if id(parameter) not in inside], body
