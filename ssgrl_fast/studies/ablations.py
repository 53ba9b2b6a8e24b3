"""The paper's ablations (section 4.3, Table 5), trained by one recipe over seeds.

    ssgrl-fast ablate --config configs/playing_cards.yaml --data.root ../shared/data/playing_cards --seeds 3

1. Learning rate: each variant is trained at each of the same multiples of the recipe's rate, and keeps the rate of the
   highest validation mAP, averaged over its last three epochs and over the search's seeds. The best rates of a linear
   layer and of a graph network differ by more than tenfold, so that one rate for all would decide the table. One seed
   does for the search where there are many validation images; where there are few, a lucky one can choose a rate at
   which the others fail.
2. Each variant is trained with its rate once a seed, on the same training images (validation images stay apart), for
   the recipe's epochs, and its last epoch reads the test images once.

Everything else (images, schedule, epochs, batch, frozen layers, loss) is the recipe's and the same for all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssgrl_fast._utils.checks import need
from ssgrl_fast.studies.trials import Say, deviation, final, spread

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer

    from ssgrl_fast.data.datamodule import MultiLabelDataModule
    from ssgrl_fast.training.task import SSGRLTask

__all__ = ["PAPER_TABLE_5", "VARIANTS", "AblationTable", "Trial", "ablate", "draw_ablations"]


@dataclass(frozen=True)
class Variant:
    """One row of Table 5: its title, the options of SSGRLTask that make it, and the paper's mAP on MS-COCO, %."""

    title: str
    options: dict[str, Any]
    paper: float


VARIANTS = {
    "baseline": Variant("baseline (average pooling + linear)", {"kind": "pooling"}, 80.3),
    "no-sd": Variant("w/o SD", {"kind": "ssgrl", "decoupling": "average"}, 80.9),
    "no-sd-concat": Variant("w/o SD-concat", {"kind": "ssgrl", "decoupling": "concat"}, 79.6),
    "no-si": Variant("w/o SI", {"kind": "ssgrl", "interaction": False}, 82.2),
    "full": Variant("full SSGRL", {"kind": "ssgrl"}, 83.8),
}
PAPER_TABLE_5 = {name: variant.paper for name, variant in VARIANTS.items()}
MULTIPLES = (1.0, 4.0, 16.0)
_UNSET = {"kind": "ssgrl", "decoupling": "semantic", "interaction": True}


@dataclass(frozen=True)
class Trial:
    """A learning rate tried, the validation mAP after each epoch (fractions, the mean over the search's seeds), and its
    mean over the last three."""

    rate: float
    curve: list[float]
    score: float


@dataclass
class AblationTable:
    """Everything measured, by variant; mAP as fractions.

    Attributes:
        facts: what the figures depend on.
        seeds: of the runs.
        search_seeds: of the search for a learning rate.
        trials: the learning rates tried; empty where only one was given.
        rates: the learning rate chosen.
        test: mAP on the test images, one a seed.
        seconds: of everything.
    """

    facts: dict[str, str]
    seeds: list[int]
    search_seeds: list[int] = field(default_factory=lambda: [0])
    trials: dict[str, list[Trial]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    test: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with mean, sample deviation (None for one seed) and the paper's figures."""
        rows = {
            name: {
                "mean": float(np.mean(values)),
                "sd": deviation(values),
                "paper_coco_mAP": PAPER_TABLE_5[name] / 100,
            }
            for name, values in self.test.items()
        }
        return {"format": "ssgrl_fast.ablations", "unit": "fraction", "rows": rows, **asdict(self)}

    def markdown(self) -> str:
        """Table 5, mAP in per cent."""
        lines = [
            "| variant | mAP | to full | learning rate | paper, MS-COCO | to full |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        full = np.mean(self.test["full"]) if "full" in self.test else None
        for name, values in self.test.items():
            gap = "-" if full is None or name == "full" else f"{100 * (np.mean(values) - full):+.1f}"
            theirs = PAPER_TABLE_5[name]
            paper_gap = "-" if name == "full" else f"{theirs - PAPER_TABLE_5['full']:+.1f}"
            cells = [VARIANTS[name].title, spread(values), gap, f"{self.rates[name]:g}", f"{theirs:.1f}", paper_gap]
            lines.append(f"| {' | '.join(cells)} |")
        searched = ", ".join(map(str, self.search_seeds))
        chosen = f"each variant's learning rate chosen on the validation images with seed {searched}"
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        lines += [
            "",
            f"mAP on the test images in per cent, mean ± sample deviation over the seeds {self.seeds}; "
            f"{chosen if any(self.trials.values()) else 'learning rates as given'}. The paper's column is its Table 5: "
            "ResNet-101 on MS-COCO, another data set and backbone, printed for the order of the rows alone. "
            f"{facts}. {self.seconds / 60:.1f} minutes.",
        ]
        return "\n".join(lines) + "\n"


def ablate(
    model: Mapping[str, Any],
    data: Mapping[str, Any],
    trainer: Mapping[str, Any],
    *,
    seeds: int = 3,
    variants: Sequence[str] = tuple(VARIANTS),
    multiples: Sequence[float] = MULTIPLES,
    rates: Mapping[str, float] | None = None,
    search_seeds: int = 1,
    say: Say = print,
) -> AblationTable:
    """Train and test the variants.

    Args:
        model: options of SSGRLTask, the recipe; kind, decoupling and interaction are the variants' to say.
        data: options of MultiLabelDataModule; it needs a test split, and validation images to choose rates on.
        trainer: options of lightning's Trainer: max_epochs, accelerator, devices, precision, …
        seeds: how many; they count from 0.
        variants: names out of VARIANTS, in the order of the table.
        multiples: of model["lr"], tried for each variant.
        rates: learning rates by variant that need no trial.
        search_seeds: how many runs a trial of a rate is averaged over; they count from 0.
        say: gets a line after each run.

    Raises:
        ValueError: unknown or repeated variants, seeds or multiples out of range, a recipe that sets what the variants
            set, no test images, or no validation images while there are rates to choose.
    """
    began, given = time.perf_counter(), dict(rates or {})
    _check(model, min(seeds, search_seeds), variants, multiples, given)
    runs = _Runs(model, data, trainer)
    table = AblationTable(facts={}, seeds=list(range(seeds)), search_seeds=list(range(search_seeds)))
    searched = [name for name in variants if name not in given and len(multiples) > 1]
    runs.check_data(searched)
    for name in variants:
        title, tried = VARIANTS[name].title, []
        for rate in [float(model["lr"]) * multiple for multiple in multiples] if name in searched else []:
            started = time.perf_counter()
            curve = np.mean([runs.curve(name, rate, seed) for seed in table.search_seeds], axis=0).tolist()
            tried.append(Trial(rate, curve, final(curve)))
            shown = " ".join(f"{100 * value:.1f}" for value in curve)
            say(f"{title}, learning rate {rate:g}: validation {shown} ({time.perf_counter() - started:.0f} s)")
        table.trials[name] = tried
        best = max(tried, key=lambda one: one.score).rate if tried else float(model["lr"]) * multiples[0]
        table.rates[name] = given.get(name, best)
        table.test[name] = []
        for seed in table.seeds:
            started = time.perf_counter()
            table.test[name].append(runs.test(name, table.rates[name], seed))
            took = time.perf_counter() - started
            say(f"{title}, seed {seed}: test mAP {100 * table.test[name][-1]:.1f} ({took:.0f} s)")
    table.facts = runs.facts
    table.seconds = time.perf_counter() - began
    return table


def _check(
    model: Mapping[str, Any],
    seeds: int,
    variants: Sequence[str],
    multiples: Sequence[float],
    rates: Mapping[str, float],
) -> None:
    unknown = [name for name in (*variants, *rates) if name not in VARIANTS]
    if unknown or not variants or len(set(variants)) != len(variants):
        raise ValueError(f"ablate: variants must be of {list(VARIANTS)}, once each, got {unknown or list(variants)}")
    if seeds < 1 or not multiples or min(*multiples, *rates.values(), 1.0) <= 0:
        raise ValueError(
            f"ablate: seeds of at least 1 and positive multiples and rates are needed, got {seeds}, {list(multiples)}, "
            f"{dict(rates)}"
        )
    for name, value in _UNSET.items():
        if model.get(name, value) != value:
            raise ValueError(f"ablate: the variants set model.{name}, the recipe must leave it {value!r}")


class _Runs:
    """Single trainings of one recipe."""

    def __init__(self, model: Mapping[str, Any], data: Mapping[str, Any], trainer: Mapping[str, Any]) -> None:
        need("lightning", "train", "ssgrl-fast ablate")
        self.model, self.data, self.trainer = dict(model), dict(data), dict(trainer)
        self.facts: dict[str, str] = {}

    def check_data(self, searched: Sequence[str]) -> None:
        from ssgrl_fast.data.datamodule import MultiLabelDataModule

        data = MultiLabelDataModule(**self.data)
        if searched and not data.has_val:
            raise ValueError(
                "ablate: learning rates are chosen on validation images, and the recipe has none: give "
                f"data.val_fraction, data.val_split, or rates for {', '.join(searched)}"
            )
        if data.test_dataset is None:
            raise ValueError("ablate: the recipe's data have no test split; give data.test_split, or data.folds")

    def curve(self, name: str, rate: float, seed: int) -> list[float]:
        """Validation mAP after each epoch."""
        from ssgrl_fast.studies.trials import ValidationCurve

        curve = ValidationCurve()
        self._fit(name, rate, seed, [curve])
        return curve.values

    def test(self, name: str, rate: float, seed: int) -> float:
        """mAP on the test images after the last epoch."""
        trainer, task, data = self._fit(name, rate, seed, [])
        trainer.test(task, datamodule=data, verbose=False)
        facts = {**task.recipe(), "epochs": str(trainer.max_epochs), "training images": str(len(data.train_dataset))}
        if facts["model"].startswith("ssgrl") or not self.facts:
            self.facts = {key: value for key, value in facts.items() if key not in ("seed", "model", "lr")}
            self.facts["backbone"] = str(self.model["backbone"])
        return float(trainer.callback_metrics["test/mAP"])

    def _fit(
        self, name: str, rate: float, seed: int, callbacks: list[Callback]
    ) -> tuple[Trainer, SSGRLTask, MultiLabelDataModule]:
        from ssgrl_fast.data.datamodule import MultiLabelDataModule
        from ssgrl_fast.studies.trials import quiet_trainer
        from ssgrl_fast.training.task import SSGRLTask

        task = SSGRLTask(**{**self.model, **VARIANTS[name].options, "lr": rate, "seed": seed})
        data = MultiLabelDataModule(**{**self.data, "seed": seed})
        limits = {} if callbacks or task.hparams["schedule"] == "plateau" else {"limit_val_batches": 0}
        options = {"num_sanity_val_steps": 0, **self.trainer, **limits, "callbacks": callbacks}
        trainer = quiet_trainer(**options)
        trainer.fit(task, datamodule=data)
        return trainer, task, data


def draw_ablations(table: AblationTable, path: str | Path) -> None:
    """Draw Table 5 as bars, mean and deviation over seeds, with a point for each seed, into a PNG.

    Raises:
        ImportError: matplotlib is missing.
        ValueError, OSError: see :func:`ssgrl_fast.inference.figures.save_figure`.
    """
    from ssgrl_fast.inference.figures import new_figure, save_figure

    figure = new_figure(7, 0.55 * len(table.test) + 1.2)
    axes = figure.add_subplot()
    for row, (name, values) in enumerate(table.test.items()):
        error = deviation(values)
        axes.barh(row, 100 * np.mean(values), xerr=None if error is None else 100 * error, color="0.75", capsize=3)
        axes.plot(100 * np.array(values), [row] * len(values), "o", color="C0", markersize=4)
        axes.text(0.5, row, f" {VARIANTS[name].title}: {spread(values)}", va="center", fontsize=9)
    axes.set(yticks=[], xlabel="test mAP, %; bars: mean and deviation, points: seeds", xlim=(0, 100))
    axes.invert_yaxis()
    save_figure(figure, path)


# ---- command ---------------------------------------------------------------------------------------------------------
