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


_GRAPH: dict[str, Any] = {"rates": (2e-4, 4e-4, 8e-4), "epochs": (4, 8, 12)}
MODELS = {
    "ssgrl": Model("SSGRL", {"kind": "ssgrl"}, **_GRAPH),
    "decoupling": Model("semantic decoupling", {"kind": "ssgrl", "interaction": False}, (3e-4, 1e-3, 3e-3), (8, 16)),
    "no-sd": Model("w/o SD", {"kind": "ssgrl", "decoupling": "average"}, **_GRAPH),
    "no-sd-concat": Model("w/o SD-concat", {"kind": "ssgrl", "decoupling": "concat"}, **_GRAPH),
    "pooling": Model("global pooling + linear", {"kind": "pooling"}, (3e-4, 1e-3, 3e-3, 1e-2), (20, 40)),
}
BASELINE = "pooling"


@dataclass(frozen=True)
class Settings:
    """The models to compare, and the data and options to compare them by.

    Attributes:
        root: a folder in Pascal VOC format with a training and a test split.
        features: folder of the cached features.
        models: names out of MODELS, ``against`` among them.
        against: the model that the gaps are to; "ssgrl" gives the differences of Table 5.
        backbone, image_size: the frozen network and the side of its square input, pixels; nothing is cropped.
        words, joint_dim, mode, backend: of SSGRL's head.
        batch_size: of training.
        seeds, folds: their numbers; the seeds are 0, 1, …
        search_seeds: training runs, with seeds 0, 1, …, over which a candidate's score is averaged.
        draws: number of bootstrap draws.
        ap_definition: see :func:`ssgrl_fast.metrics.average_precision`.
        epochs: number of epochs of every model; None: chosen among each model's own numbers.
    """

    root: str
    features: str = "runs/features"
    models: tuple[str, ...] = ("ssgrl", "decoupling", "pooling")
    against: str = BASELINE
    backbone: str = "efficientnet-lite0"
    image_size: int = 384
    words: str = "spacy-md-300d"
    joint_dim: int = 256
    mode: str = "paper"
    backend: str | None = None
    batch_size: int = 16
    seeds: int = 3
    search_seeds: int = 1
    folds: int = 5
    draws: int = 2000
    ap_definition: str = "voc2010"
    epochs: int | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.models if name not in MODELS]
        if unknown or self.against not in self.models or len(set(self.models)) != len(self.models):
            raise ValueError(
                f"compare: models must be {self.against!r}, which the gaps are to, and others of {list(MODELS)}, once "
                f"each, got {list(self.models)}"
            )
        counts = (self.seeds, self.search_seeds, self.draws, 1 if self.epochs is None else self.epochs)
        if min(counts) < 1 or self.folds < 2:
            raise ValueError(
                "compare: seeds, search_seeds, draws and epochs must be at least 1, folds at least 2, got "
                f"{self.seeds}, {self.search_seeds}, {self.draws}, {self.epochs} and {self.folds}"
            )


@dataclass(frozen=True)
class Candidate:
    """A peak learning rate and a number of epochs that were tried, the validation mAP after each epoch (fractions, the
    mean over the seeds of the search), and the mean of its last three values as the score."""

    rate: float
    epochs: int
    curve: list[float]
    score: float
