"""The options of the training task: their choices, and the defaults of the modes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast.labels.matrix import DIFFICULT_RULES
from ssgrl_fast.models.backbone import FREEZE_MODES
from ssgrl_fast.training.losses import LOSSES
from ssgrl_fast.training.optim import OPTIMIZERS, SCHEDULES

CLASS_ROWS = ("new", "by_name")

_CHOICES: dict[str, tuple[str, ...]] = {
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "difficult": DIFFICULT_RULES,
    "schedule": SCHEDULES,
    "freeze": FREEZE_MODES,
    "transfer_classes": CLASS_ROWS,
}

ARCHITECTURE = (
    "kind",
    "backbone",
    "mode",
    "joint_dim",
    "steps",
    "decoupling",
    "interaction",
)  # what a checkpoint settles

MODE_DEFAULTS: dict[str, dict[str, str]] = {
    "paper": {"loss": "sum", "schedule": "plateau", "freeze": "paper", "difficult": "ignore"},
    "official": {"loss": "mean", "schedule": "constant", "freeze": "official", "difficult": "negative"},
}

KINDS = ("ssgrl", "pooling")


def check_options(options: Mapping[str, Any]) -> None:
    """Check the options of :class:`~ssgrl_fast.training.task.SSGRLTask`, their defaults filled in.

    Raises:
        ValueError: an option that is none of its choices, or options that contradict each other.
    """
    for name, choices in _CHOICES.items():
        check_choice("SSGRLTask", name, options[name], choices)
    if options["cache_features"] is not None and options["freeze"] != "all":
        raise ValueError(f"SSGRLTask: cache_features needs freeze='all', got freeze={options['freeze']!r}")
    if options["transfer_from"] is not None and options["backbone_weights"] is not None:
        raise ValueError("SSGRLTask: transfer_from brings the backbone's weights: give no backbone_weights beside it")
