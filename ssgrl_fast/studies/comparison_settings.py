"""The settings of :mod:`ssgrl_fast.studies.comparison`: the models, their candidates, and the result of a candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """One of the compared models.

    Attributes:
        title: its name in tables.
        options: of SSGRLTask.
        rates, epochs: peak learning rates and numbers of epochs to choose from; every pair is tried.
    """

    title: str
    options: dict[str, Any]
    rates: tuple[float, ...]
    epochs: tuple[int, ...]


MODELS = {
    "ssgrl": Model("SSGRL", {"kind": "ssgrl"}, (2e-4, 4e-4, 8e-4), (4, 8, 12)),
    "decoupling": Model("semantic decoupling", {"kind": "ssgrl", "interaction": False}, (3e-4, 1e-3, 3e-3), (8, 16)),
    "pooling": Model("global pooling + linear", {"kind": "pooling"}, (3e-4, 1e-3, 3e-3, 1e-2), (20, 40)),
}
BASELINE = "pooling"


@dataclass(frozen=True)
class Settings:
    """The models to compare, and the data and options to compare them by.

    Attributes:
        root: a folder in Pascal VOC format with a training and a test split.
        features: folder of the cached features.
        models: names out of MODELS, "pooling" among them.
        backbone, image_size: the frozen network and the side of its square input, pixels; nothing is cropped.
        words, joint_dim, mode, backend: of SSGRL's head.
        batch_size: of training.
        seeds, folds: their numbers; the seeds are 0, 1, …
        draws: number of bootstrap draws.
        ap_definition: see :func:`ssgrl_fast.metrics.average_precision`.
        epochs: number of epochs of every model; None: chosen among each model's own numbers.
    """

    root: str
    features: str = "runs/features"
    models: tuple[str, ...] = ("ssgrl", "decoupling", "pooling")
    backbone: str = "efficientnet-lite0"
    image_size: int = 384
    words: str = "spacy-md-300d"
    joint_dim: int = 256
    mode: str = "paper"
    backend: str | None = None
    batch_size: int = 16
    seeds: int = 3
    folds: int = 5
    draws: int = 2000
    ap_definition: str = "voc2010"
    epochs: int | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.models if name not in MODELS]
        if unknown or BASELINE not in self.models or len(set(self.models)) != len(self.models):
            raise ValueError(
                f"compare: models must be {BASELINE!r} and others of {list(MODELS)}, once each, got {list(self.models)}"
            )
        if min(self.seeds, self.draws, 1 if self.epochs is None else self.epochs) < 1 or self.folds < 2:
            values = f"{self.seeds}, {self.draws}, {self.epochs} and {self.folds}"
            raise ValueError(f"compare: seeds, draws and epochs must be at least 1, folds at least 2, got {values}")


@dataclass(frozen=True)
class Candidate:
    """A peak learning rate and a number of epochs that were tried, the validation mAP after each epoch (fractions), and
    the mean of its last three values as the score."""

    rate: float
    epochs: int
    curve: list[float]
    score: float
