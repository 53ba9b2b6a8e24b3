"""The options of :class:`~ssgrl_fast.training.task.SSGRLTask`, by group.

Each group is a dataclass, the only place where the defaults and the help text of its options are written; ``--help``
shows the groups in the order of :data:`TASK_GROUPS`.

====================  =========================================  ==========================================
option                mode="paper"                               mode="official" (the published code)
====================  =========================================  ==========================================
loss                  summed over samples and classes (eq. 12)   mean over samples and classes (D16)
schedule              divided by 10 on a plateau                 constant (D17)
freeze                the first 92 convolutions                  all but layer4 (D14, D15)
reset gate            its own U^r (eq. 9)                        the update gate's U^z (D1)
difficult objects     ignored (the paper is silent)              absent (D27)
====================  =========================================  ==========================================

Every row but the reset gate can be set on its own; Adam with lr 1e-5 and betas (0.9, 0.999) is common to both (D18).
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from math import inf
from typing import Any, Literal

from ssgrl_fast._utils.options import check_fields

CLASS_ROWS = ("new", "by_name")
"""What :func:`ssgrl_fast.training.transfer.transfer_weights` may do with the rows of classifiers."""

MODE_DEFAULTS: dict[str, dict[str, str]] = {
    "paper": {"loss": "sum", "schedule": "plateau", "freeze": "paper", "difficult": "ignore"},
    "official": {"loss": "mean", "schedule": "constant", "freeze": "official", "difficult": "negative"},
}
"""Options that are None by default and follow the mode."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureOptions:
    """Network.

    Args:
        kind: "ssgrl", or "pooling": global average pooling and a linear layer, the baseline of Table 5.
        backbone: name of the backbone: "resnet101", "efficientnet-lite0", "small-cnn", "timm:NAME", ...
        mode: "paper" or "official"; decides the reset gate and the options whose default is "by mode".
        joint_dim: size of the joint space of eq. 3.
        steps: number of propagation steps, T of eq. 9.
        decoupling: "semantic", or Table 5's "average" ("w/o SD") or "concat" ("w/o SD-concat").
        interaction: false: without the graph network (Table 5, "w/o SI").
    """

    kind: Literal["ssgrl", "pooling"] = "ssgrl"
    backbone: str = "resnet101"
    mode: Literal["paper", "official"] = "paper"
    joint_dim: int = 1024
    steps: int = 3
    decoupling: Literal["semantic", "average", "concat"] = "semantic"
    interaction: bool = True


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Word vectors and label graph.

    Args:
        words: "glove-6b-50d", "spacy-md-300d" or a file of word vectors; required for kind "ssgrl".
        compounds: words of class names to the words whose vectors are averaged in their place, '{WORD: [A, B]}'.
        graph: file with an adjacency P(c' | c); unset: counted on the training labels (section 3.3).
        graph_diagonal: diagonal of a counted graph: 0 (the authors' COCO graph) or 1 (D6).
    """

    words: str | None = None
    compounds: dict[str, list[str]] | None = None
    graph: str | None = None
    graph_diagonal: float = 0.0


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Weights to start from.

    Args:
        pretrained: start the backbone from its ImageNet weights; unset: where there are any.
        backbone_weights: file with weights of the backbone, in place of the pretrained ones; a bundle's
            model.safetensors will do.
        transfer_from: bundle or checkpoint over other classes to start from, the paper's "pre" rows.
        transfer_classes: classifiers after a transfer: "new" ones, or those of classes known on both sides "by_name".
        transfer_aliases: its class names -> the names here, where they differ; unset: MS-COCO's -> Pascal VOC's.
    """

    pretrained: bool | None = None
    backbone_weights: str | None = None
    transfer_from: str | None = None
    transfer_classes: Literal["new", "by_name"] = "new"
    transfer_aliases: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Loss and metrics.

    Args:
        loss: "sum" or "mean" of the cross entropy, or "asymmetric" (ASL, summed); unset: by mode.
        asymmetry: exponents of negatives and positives, and the margin, of the asymmetric loss.
        difficult: objects marked difficult: "ignore", "positive" or "negative", in loss, graph and metrics; unset: by
            mode.
        ap_definition: definition of average precision: "voc2010", "voc2007" or "plain" (D32).
    """

    loss: Literal["sum", "mean", "asymmetric"] | None = None
    asymmetry: tuple[float, float, float] = (4.0, 0.0, 0.05)
    difficult: Literal["ignore", "positive", "negative"] | None = None
    ap_definition: Literal["voc2010", "voc2007", "plain"] = "voc2010"


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer.

    Args:
        freeze: weights of the backbone that stay: "paper", "official", "all" or "none"; unset: by mode.
        optimizer: "adam" (section 3.5) or "adamw".
        lr: learning rate.
        head_lr: learning rate of everything outside the backbone; unset: lr.
        betas: decay rates of Adam's two moments.
        weight_decay: L2 term of Adam, weight decay of AdamW.
    """

    freeze: Literal["paper", "official", "all", "none"] | None = None
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-5
    head_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """Schedule of the learning rate.

    Args:
        schedule: "plateau", "constant", "onecycle" or "cosine"; unset: by mode.
        plateau_monitor: logged value that "plateau" watches: "val/loss" or "train/loss" (falling), "val/mAP", "val/CF1"
            ... (rising).
        plateau_patience: number of epochs without improvement before the rate is lowered.
        plateau_factor: factor that "plateau" multiplies the rate by.
    """

    schedule: Literal["plateau", "constant", "onecycle", "cosine"] | None = None
    plateau_monitor: str = "val/loss"
    plateau_patience: int = 3
    plateau_factor: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Execution.

    Args:
        backend: backend of the three fused operations; unset: the fastest.
        cache_features: folder for the features of a frozen backbone, which are then computed once.
        channels_last: store images and the backbone's weights with channels last, which GPUs convolve faster.
        compile_backbone: compile the backbone with torch.compile.
        seed: seed of the initial weights and, with the epoch, of all that is random in training.
    """

    backend: str | None = None
    cache_features: str | None = None
    channels_last: bool = False
    compile_backbone: bool = False
    seed: int = 0


TASK_GROUPS = (
    ArchitectureOptions,
    LabelOptions,
    StartOptions,
    LossOptions,
    OptimizerOptions,
    ScheduleOptions,
    ExecutionOptions,
)
"""The groups in the order that ``--help`` shows them."""

ARCHITECTURE = tuple(field.name for field in fields(ArchitectureOptions))
"""Options that a checkpoint settles: they decide the shape of the network, or the meaning of its weights."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions(
    ExecutionOptions, ScheduleOptions, OptimizerOptions, LossOptions, StartOptions, LabelOptions, ArchitectureOptions
):
    """All options of a task; those that are None by default and follow the mode have its values.

    Raises:
        ValueError: an option that is none of its choices, or options that contradict each other.
        TypeError: an option of another type.
    """

    def __post_init__(self) -> None:
        check_fields("SSGRLTask", self)
        for name, value in MODE_DEFAULTS[self.mode].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # the object is still being made
        numbers: dict[str, tuple[float | None, bool, str]] = {
            "steps": (self.steps, self.steps >= 1, "at least 1"),
            "seed": (self.seed, self.seed >= 0, "at least 0"),
            "weight_decay": (self.weight_decay, 0 <= self.weight_decay < inf, "finite and at least 0"),
            "lr": (self.lr, 0 <= self.lr < inf, "finite and at least 0"),
            "head_lr": (self.head_lr, self.head_lr is None or 0 <= self.head_lr < inf, "finite and at least 0"),
        }
        for name, (given, fits, expected) in numbers.items():
            if not fits:
                raise ValueError(f"SSGRLTask: {name} must be {expected}, got {given}")
        if self.cache_features is not None and self.freeze != "all":
            raise ValueError(f"SSGRLTask: cache_features needs freeze='all', got freeze={self.freeze!r}")
        if self.transfer_from is not None and self.backbone_weights is not None:
            raise ValueError(
                "SSGRLTask: transfer_from brings the backbone's weights: give no backbone_weights beside it"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, as checkpoints store them; paths as text."""
        return {name: os.fspath(x) if isinstance(x, os.PathLike) else x for name, x in asdict(self).items()}
