"""SSGRL against global pooling + linear on the features of a frozen backbone, by seeds and folds, with an interval.

    ssgrl-fast compare --root ../shared/data/playing_cards

1. The features of every image, plain and mirrored, are computed once and kept (:mod:`ssgrl_fast.data.features`).
2. Peak learning rate and number of epochs of each model are chosen on a fifth of the training images: each pair is
   trained with a one-cycle schedule, and the highest validation mAP wins, averaged over the last epochs, in which the
   rate is small, because 59 images are few.
3. Each model is trained on all training images with what was chosen, once a seed, and reads the test images once.
4. Folds over training and test images together, with the same choice: each image gets, for each seed, logits of a model
   that has not seen it. mAP is given as the mean over folds, and over all images at once.
5. Paired bootstrap of the gap: images are drawn with replacement, the same for all models and seeds; for every draw
   each model's mAP over all images is averaged over the seeds. The interval holds the middle 95 % of the gaps.

The folds contain the images that step 2 was decided on; that favours no model, as each had its choice there.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.files import replacing
from ssgrl_fast.data.splits import fold_rows
from ssgrl_fast.metrics import average_precision
from ssgrl_fast.studies.comparison_settings import BASELINE, MODELS, Candidate, Model, Settings
from ssgrl_fast.studies.trials import Say, final, spread

__all__ = ["MODELS", "Candidate", "Gap", "Model", "Outcome", "Settings", "compare", "final", "paired_bootstrap"]


@dataclass(frozen=True)
class Gap:
    """A difference of mAP to the baseline, fractions: its value, and the interval of the bootstrap."""

    mean: float
    low: float
    high: float


@dataclass
class Outcome:
    """Everything measured, by model; mAP as fractions.

    Attributes:
        settings: what was asked.
        facts: numbers of images and classes, backend, dtype, versions.
        candidates, chosen: learning rates and epochs tried, and the winner.
        test: mAP on the test images, one a seed.
        folds: mAP, [seed][fold].
        pooled: mAP over all images at once, one a seed.
        gaps: to the baseline, of the pooled mAP averaged over seeds.
        seconds: of the whole comparison.
    """

    settings: Settings
    facts: dict[str, Any]
    candidates: dict[str, list[Candidate]] = field(default_factory=dict)
    chosen: dict[str, Candidate] = field(default_factory=dict)
    test: dict[str, list[float]] = field(default_factory=dict)
    folds: dict[str, list[list[float]]] = field(default_factory=dict)
    pooled: dict[str, list[float]] = field(default_factory=dict)
    gaps: dict[str, Gap] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": "ssgrl_fast.comparison", "unit": "fraction", **asdict(self)}

    def markdown(self) -> str:
        """The table, mAP in per cent."""
        s = self.settings
        lines = [
            "| model | learning rate | epochs | validation | test | folds | all images | gap, 95 % interval |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name in s.models:
            best, gap = self.chosen[name], self.gaps.get(name)
            said = "-" if gap is None else f"{100 * gap.mean:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
            folds = [float(np.mean(row)) for row in self.folds[name]]
            cells = [MODELS[name].title, f"{best.rate:g}", str(best.epochs), f"{100 * best.score:.1f}"]
            cells += [spread(self.test[name]), spread(folds), spread(self.pooled[name]), said]
            lines.append(f"| {' | '.join(cells)} |")
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        lines += [
            "",
            f"mAP in per cent ({s.ap_definition}), mean ± deviation over {s.seeds} seeds; the gap is to "
            f"global pooling, over all images. Frozen {s.backbone} at {s.image_size}×{s.image_size}; "
            f"SSGRL mode {s.mode}, K = {s.joint_dim}, words {s.words}; {facts}. "
            "Peak learning rate (one-cycle) and epochs of each model by a fifth of the training images; "
            f"the test images were read once a model and seed; {s.folds} folds over all images; "
            f"paired bootstrap over images, {s.draws} draws, on the logits of held-out folds, mAP averaged over seeds. "
            f"{self.seconds / 60:.1f} minutes.",
        ]
        return "\n".join(lines) + "\n"


# ---- protocol --------------------------------------------------------------------------------------------------------


def compare(settings: Settings, *, say: Say = print, keep: Path | None = None) -> Outcome:
    """Run the protocol of this module.

    Args:
        settings: what to compare.
        say: gets a line at every step.
        keep: folder for ``predictions.npz`` (labels, ids, fold of each image, logits by model and seed), or None.

    Raises:
        FileNotFoundError, ValueError: of the data set; no test split.
        ImportError: the extra "train" is not installed.
    """
    need("lightning", "train", "ssgrl-fast compare")
    from ssgrl_fast.studies.comparison_runs import Bench

    began = time.perf_counter()
    bench = Bench(settings, say)
    outcome = Outcome(settings, bench.facts())
    train, test = bench.train_rows, bench.test_rows
    order = np.random.default_rng(0).permutation(train)
    held = sorted(order[: max(1, round(0.2 * len(order)))].tolist())
    rest = sorted(set(train) - set(held))
    for name in settings.models:
        model = MODELS[name] if settings.epochs is None else replace(MODELS[name], epochs=(settings.epochs,))
        grid = [(rate, epochs) for epochs in model.epochs for rate in model.rates]
        outcome.candidates[name] = [bench.candidate(name, rate, epochs, rest, held) for rate, epochs in grid]
        outcome.chosen[name] = best = max(outcome.candidates[name], key=lambda one: one.score)
        said = f"learning rate {best.rate:g}, {best.epochs} epochs, validation {100 * best.score:.1f}"
        say(f"{model.title}: {said}")
    for name, best in outcome.chosen.items():
        logits = [bench.logits(name, best, train, test, seed) for seed in range(settings.seeds)]
        outcome.test[name] = [bench.mean_ap(one, test) for one in logits]
        say(f"{MODELS[name].title}: test {spread(outcome.test[name])}")
    parts = fold_rows(len(bench.labels), settings.folds)
    scores = {name: torch.zeros(settings.seeds, *bench.labels.shape) for name in settings.models}
    everything = list(range(len(bench.labels)))
    for name, best in outcome.chosen.items():
        outcome.folds[name] = []
        for seed in range(settings.seeds):
            for part in parts:
                seen = sorted(set(everything) - set(part))
                scores[name][seed, part] = bench.logits(name, best, seen, part, seed)
            outcome.folds[name].append([bench.mean_ap(scores[name][seed, part], part) for part in parts])
            outcome.pooled[name] = [bench.mean_ap(one, everything) for one in scores[name][: seed + 1]]
            say(f"{MODELS[name].title}: folds of seed {seed}: {100 * np.mean(outcome.folds[name][-1]):.1f}")
    outcome.gaps = paired_bootstrap(scores, bench.labels, settings.draws, settings.ap_definition)
    if keep is not None:
        fold_of = np.zeros(len(bench.labels), dtype=np.int64)
        for number, part in enumerate(parts):
            fold_of[part] = number
        arrays: dict[str, Any] = {f"logits_{name}": value.numpy() for name, value in scores.items()}
        with replacing(keep / "predictions.npz") as place, place.open("wb") as file:
            np.savez_compressed(file, labels=bench.labels.numpy(), ids=np.array(bench.ids), fold=fold_of, **arrays)
    outcome.seconds = time.perf_counter() - began
    return outcome


def paired_bootstrap(
    scores: dict[str, Tensor],
    labels: Tensor,
    draws: int = 2000,
    definition: str = "voc2010",
    *,
    baseline: str = BASELINE,
    seed: int = 0,
) -> dict[str, Gap]:
    """The gap of mAP of each model to the baseline, with the middle 95 % of its bootstrap distribution over images.

    A draw takes M of the M images with replacement, the same for every model and seed; a class without positives in a
    draw is left out of that draw's mAP, for all models alike.

    Args:
        scores: [seeds, M, C] logits by model.
        labels: [M, C] in {1, 0, -1}.
        draws: how many.
        definition: of AP.
        baseline: the name of the model that the others are compared with.
        seed: of the draws.

    Raises:
        ValueError: no such baseline, or shapes that differ.
    """
    shapes = {name: tuple(value.shape[1:]) for name, value in scores.items()}
    if baseline not in scores or any(shape != tuple(labels.shape) for shape in shapes.values()):
        raise ValueError(f"paired_bootstrap: needs {baseline!r} and scores [seeds, {list(labels.shape)}], got {shapes}")

    def mean_ap(name: str, rows: Tensor) -> float:
        values = [average_precision(one[rows], labels[rows], definition=definition) for one in scores[name]]
        return float(torch.stack(values).nanmean(1).mean())

    rng = np.random.default_rng(seed)
    all_rows = torch.arange(len(labels))
    value = {name: mean_ap(name, all_rows) for name in scores}
    drawn: dict[str, list[float]] = {name: [] for name in scores if name != baseline}
    for _ in range(draws):
        rows = torch.from_numpy(rng.integers(0, len(labels), len(labels)))
        reference = mean_ap(baseline, rows)
        for name, gaps in drawn.items():
            gaps.append(mean_ap(name, rows) - reference)
    return {
        name: Gap(value[name] - value[baseline], *(float(edge) for edge in np.percentile(gaps, [2.5, 97.5])))
        for name, gaps in drawn.items()
    }


# ---- command ---------------------------------------------------------------------------------------------------------
