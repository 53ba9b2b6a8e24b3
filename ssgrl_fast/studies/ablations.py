"""The paper's ablations (section 4.3, Table 5), trained by one recipe over seeds.

    ssgrl-fast ablate --config configs/photos.yaml --data.root data/playing_cards --seeds 3

1. Learning rate: each variant is trained at the same multiples of the recipe's learning rate, and keeps the rate with
   the highest validation mAP, averaged over its last three epochs and over the seeds of the search. The best rates of a
   linear layer and of a graph network differ by more than tenfold, so that one rate for all would decide the table. One
   seed is enough for the search if there are many validation images; if there are few, a rate can be best by chance for
   one seed and fail for the others.
2. Each variant is trained with its rate once per seed, on the same training images (without the validation images), for
   the recipe's epochs, and is evaluated on the test images once, after the last epoch.
3. Paired bootstrap of the gap to the full network: test images are drawn with replacement, the same for all variants
   and seeds; for every draw each variant's mAP is averaged over the seeds. The interval contains the middle 95 % of the
   gaps. It covers the choice of test images, not that of the seeds, over which mAP is averaged.

Everything else (images, schedule, epochs, batch, frozen layers, loss) is the recipe's and the same for all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.escape import for_markdown
from ssgrl_fast.metrics import average_precision
from ssgrl_fast.studies.comparison import Gap, paired_bootstrap
from ssgrl_fast.studies.scores import Log, deviation, final, percentages, spread

if TYPE_CHECKING:
    from ssgrl_fast.studies.ablation_runs import AblationRuns

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
    """One learning rate of a search.

    Attributes:
        rate: the learning rate.
        curve: validation mAP after each epoch, fractions, the mean over the seeds of the search.
        score: the mean of the last three values of the curve.
    """

    rate: float
    curve: list[float]
    score: float


@dataclass
class AblationTable:
    """Everything measured, by variant; mAP as fractions.

    Attributes:
        facts: what the results depend on: data, schedule, epochs, backbone.
        seeds: of the tested runs.
        search_seeds: of the search for a learning rate.
        trials: the learning rates tried; empty without a search.
        rates: the learning rate chosen.
        test: mAP on the test images, one value per seed.
        gaps: differences to the full network, if it is among the variants.
        seconds: duration of everything.
    """

    facts: dict[str, str]
    seeds: list[int]
    search_seeds: list[int] = field(default_factory=lambda: [0])
    trials: dict[str, list[Trial]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    test: dict[str, list[float]] = field(default_factory=dict)
    gaps: dict[str, Gap] = field(default_factory=dict)
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
            "| variant | mAP | gap to full, 95 % interval | learning rate | paper, MS-COCO | gap to full |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name, values in self.test.items():
            gap = str(self.gaps.get(name, "-"))
            paper = PAPER_TABLE_5[name]
            paper_gap = "-" if name == "full" else f"{paper - PAPER_TABLE_5['full']:+.1f}"
            cells = [VARIANTS[name].title, spread(values), gap, f"{self.rates[name]:g}", f"{paper:.1f}", paper_gap]
            lines.append(f"| {' | '.join(cells)} |")
        searched = ", ".join(map(str, self.search_seeds))
        chosen = f"each variant's learning rate chosen on the validation images with seed {searched}"
        facts = for_markdown(", ".join(f"{name} {value}" for name, value in self.facts.items()))
        lines += [
            "",
            f"mAP on the test images in per cent, mean ± sample deviation over the seeds {self.seeds}; "
            f"{chosen if any(self.trials.values()) else 'learning rates were given'}; paired bootstrap over test "
            f"images, mAP averaged over seeds. The paper's column is its Table "
            "5: ResNet-101 on MS-COCO, another data set and backbone; only the order of the rows compares. "
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
    draws: int = 1000,
    log: Log = print,
) -> AblationTable:
    """Train and test the variants.

    Args:
        model: options of SSGRLTask, the recipe; the variants set kind, decoupling and interaction.
        data: options of MultiLabelDataModule; it needs a test split, and validation images to choose rates on.
        trainer: options of lightning's Trainer: max_epochs, accelerator, devices, precision, …
        seeds: number of runs per variant; their seeds are 0, 1, …
        variants: names out of VARIANTS, in the order of the table.
        multiples: of model["lr"], tried for each variant.
        rates: learning rates by variant, which are not searched.
        search_seeds: number of runs over which each rate's score is averaged; their seeds are 0, 1, …
        draws: of the bootstrap.
        log: called with a line of text after each run.

    Raises:
        ValueError: unknown or repeated variants, seeds or multiples out of range, a recipe that sets what the variants
            set, no test images, or no validation images while there are rates to choose.
        ImportError: the extra "train" is not installed.
    """
    began, fixed_rates = time.perf_counter(), dict(rates or {})
    _check(model, min(seeds, search_seeds, draws), variants, multiples, fixed_rates)
    need("lightning", "train", "ssgrl-fast ablate")
    from ssgrl_fast.studies.ablation_runs import AblationRuns

    runs = AblationRuns(model, data, trainer)
    table = AblationTable(facts={}, seeds=list(range(seeds)), search_seeds=list(range(search_seeds)))
    searched = [name for name in variants if name not in fixed_rates and len(multiples) > 1]
    runs.check_data(searched)
    candidates = [float(model["lr"]) * multiple for multiple in multiples]
    logits: dict[str, Tensor] = {}  # [seeds, M, C]
    for name in variants:
        # 1: the learning rate
        trials = [_trial(runs, name, rate, table.search_seeds, log) for rate in candidates if name in searched]
        best = max(trials, key=lambda trial: trial.score).rate if trials else candidates[0]
        table.trials[name], table.rates[name] = trials, fixed_rates.get(name, best)
        # 2: the tested runs
        table.test[name], kept = [], []
        for seed in table.seeds:
            started = time.perf_counter()
            scores, labels = runs.test(VARIANTS[name].options, table.rates[name], seed)
            kept.append(scores)
            table.test[name].append(float(average_precision(scores, labels, **runs.rules).nanmean()))
            seconds = time.perf_counter() - started
            log(f"{VARIANTS[name].title}, seed {seed}: test mAP {100 * table.test[name][-1]:.1f} ({seconds:.0f} s)")
        logits[name] = torch.stack(kept)
    # 3: the gaps
    if "full" in logits:
        table.gaps = paired_bootstrap(logits, labels, draws, baseline="full", **runs.rules)
    table.facts = runs.facts
    table.seconds = time.perf_counter() - began
    return table


def _trial(runs: AblationRuns, name: str, rate: float, seeds: Sequence[int], log: Log) -> Trial:
    """Train a variant at one learning rate, once per seed."""
    started = time.perf_counter()
    curves = [runs.curve(VARIANTS[name].options, rate, seed) for seed in seeds]
    mean = np.mean(curves, axis=0).tolist()
    seconds = time.perf_counter() - started
    log(f"{VARIANTS[name].title}, learning rate {rate:g}: validation {percentages(mean)} ({seconds:.0f} s)")
    return Trial(rate, mean, final(mean))


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
            f"ablate: seeds and draws of at least 1, positive multiples and rates are needed, got {seeds}, "
            f"{list(multiples)}, {dict(rates)}"
        )
    for name, value in _UNSET.items():
        if model.get(name, value) != value:
            raise ValueError(f"ablate: the variants set model.{name}, the recipe must leave it {value!r}")


def draw_ablations(table: AblationTable, path: str | Path) -> None:
    """Draw Table 5 as bars (mean and deviation over seeds) with a point for each seed, and save the picture.

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
