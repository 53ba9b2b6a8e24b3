"""The settings of :mod:`ssgrl_fast.studies.comparison`: the models with their grids, and what one trial returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """One of the compared models: options of SSGRLTask, and the grid its learning rate and epochs are chosen from."""

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
    """What is compared, and on what.

    Attributes:
        root: a folder in Pascal VOC format with a training and a test split.
        features: where features are kept.
        models: names out of MODELS, "pooling" among them.
        backbone, image_size: the frozen network and the side of its square input, pixels; nothing is cropped.
        words, joint_dim, mode, backend: of SSGRL's head.
        batch_size: of training.
        seeds, folds: how many; seeds count from 0.
        draws: bootstrap draws.
        ap_definition: see metrics.average_precision.
        epochs: so many in place of a model's own numbers, for trials.
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
            given = f"{self.seeds}, {self.draws}, {self.epochs} and {self.folds}"
            raise ValueError(f"compare: seeds, draws and epochs of at least 1 and folds of at least 2, got {given}")


@dataclass(frozen=True)
class Candidate:
    """A peak learning rate, a number of epochs, the validation mAP after each epoch, and its score by ``final``."""

    rate: float
    epochs: int
    curve: list[float]
    score: float
