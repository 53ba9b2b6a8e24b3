"""SSGRL against global pooling + linear on the features of a frozen backbone, by seeds and folds, with an interval; or
the rows of Table 5 against SSGRL.

    ssgrl-fast compare --root data/playing_cards
    ssgrl-fast compare --root data/playing_cards --models ssgrl decoupling no-sd no-sd-concat pooling --against ssgrl

1. The features of every image, plain and mirrored, are computed once and cached (:mod:`ssgrl_fast.data.features`).
2. Peak learning rate and number of epochs of each model are chosen on a fifth of the training images: each pair is
   trained with a one-cycle schedule, and the pair with the highest validation mAP is taken. The mAP is averaged over
   the last epochs, in which the rate is small, because validation images are few (59 of the playing cards), and over
   ``search_seeds`` runs.
3. Each model is trained on all training images with the chosen pair, once per seed, and evaluated once on the test
   images.
4. Cross-validation over training and test images together, with the same pair: for each seed, each image gets logits of
   a model that was not trained on it. mAP is computed as the mean over folds, and over all images at once.
5. Paired bootstrap of the gap: images are drawn with replacement, the same for all models and seeds; for every draw
   each model's mAP over all images is averaged over the seeds. The interval contains the middle 95 % of the gaps.

The folds contain the validation images of step 2; that favours no model, as each was tuned on them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.escape import for_markdown
from ssgrl_fast._utils.files import replacing
from ssgrl_fast.data.splits import fold_rows
from ssgrl_fast.metrics import average_precision
from ssgrl_fast.studies.comparison_settings import BASELINE, MODELS, Candidate, Model, Settings
from ssgrl_fast.studies.scores import Log, final, spread

if TYPE_CHECKING:
    from ssgrl_fast.studies.comparison_runs import ComparisonRuns

__all__ = ["MODELS", "Candidate", "Gap", "Model", "Outcome", "Settings", "compare", "final", "paired_bootstrap"]


@dataclass(frozen=True)
class Gap:
    """A difference of mAP to the model ``against``, fractions: its value, and the ends of the bootstrap's interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """In per cent, with the interval in brackets."""
        return f"{100 * self.mean:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


@dataclass
class Outcome:
    """All results, by model; mAP as fractions.

    Attributes:
        settings: of the comparison.
        facts: numbers of images and classes, backend, dtype, versions.
        candidates, chosen: learning rates and epochs tried, and the best.
        test: mAP on the test images, one value per seed.
        folds: mAP, [seed][fold].
        pooled: mAP over all images at once, one value per seed.
        gaps: differences to the model ``against``, of the pooled mAP averaged over seeds.
        seconds: duration of the whole comparison.
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
            best, interval = self.chosen[name], str(self.gaps.get(name, "-"))
            folds = [float(np.mean(row)) for row in self.folds[name]]
            cells = [MODELS[name].title, f"{best.rate:g}", str(best.epochs), f"{100 * best.score:.1f}"]
            cells += [spread(self.test[name]), spread(folds), spread(self.pooled[name]), interval]
            lines.append(f"| {' | '.join(cells)} |")
        facts = for_markdown(", ".join(f"{name} {value}" for name, value in self.facts.items()))
        lines += [
            "",
            f"mAP in per cent ({s.ap_definition}), mean ± deviation over {s.seeds} seeds; the gap is to "
            f"{MODELS[s.against].title}, over all images. "
            f"Frozen {for_markdown(s.backbone)} at {s.image_size}×{s.image_size}; "
            f"SSGRL mode {s.mode}, K = {s.joint_dim}, words {for_markdown(s.words)}; {facts}. "
            "Peak learning rate (one-cycle) and epochs of each model were chosen on a fifth of the training images, "
            f"mean over {s.search_seeds} seeds; "
            f"the test images were evaluated once per model and seed; {s.folds} folds over all images; "
            f"paired bootstrap over images, {s.draws} draws, on logits of held-out folds, mAP averaged over seeds. "
            f"{self.seconds / 60:.1f} minutes.",
        ]
        return "\n".join(lines) + "\n"


# ---- protocol --------------------------------------------------------------------------------------------------------


def compare(settings: Settings, *, log: Log = print, keep: Path | None = None) -> Outcome:
    """Run the protocol of this module.

    Args:
        settings: what to compare.
        log: called with a line of text at every step.
        keep: folder for ``predictions.npz`` (labels, ids, fold of each image, logits by model and seed), or None.

    Raises:
        FileNotFoundError, ValueError: of the data set; no test split.
        ImportError: the extra "train" is not installed.
    """
    need("lightning", "train", "ssgrl-fast compare")
    from ssgrl_fast.studies.comparison_runs import ComparisonRuns

    began = time.perf_counter()
    runs = ComparisonRuns(settings, log)  # 1: features
    outcome = Outcome(settings, runs.facts())
    _choose(runs, outcome)
    # 3: the test images
    for name, best in outcome.chosen.items():
        logits = [runs.logits(name, best, runs.train_rows, runs.test_rows, seed) for seed in range(settings.seeds)]
        outcome.test[name] = [runs.mean_ap(one, runs.test_rows) for one in logits]
        log(f"{MODELS[name].title}: test {spread(outcome.test[name])}")
    folds = fold_rows(len(runs.labels), settings.folds)
    scores = _cross_validate(runs, outcome, folds)
    # 5: the gaps
    outcome.gaps = paired_bootstrap(
        scores, runs.labels, settings.draws, settings.ap_definition, baseline=settings.against
    )
    if keep is not None:
        _save_predictions(keep / "predictions.npz", runs, folds, scores)
    outcome.seconds = time.perf_counter() - began
    return outcome


def _choose(runs: ComparisonRuns, outcome: Outcome) -> None:
    """Step 2: each model's learning rate and number of epochs, on a fifth of the training images."""
    settings = outcome.settings
    order = np.random.default_rng(0).permutation(runs.train_rows)
    val_rows = sorted(order[: max(1, round(0.2 * len(order)))].tolist())
    train_rows = sorted(set(runs.train_rows) - set(val_rows))
    for name in settings.models:
        model = MODELS[name] if settings.epochs is None else replace(MODELS[name], epochs=(settings.epochs,))
        outcome.candidates[name] = [
            runs.candidate(name, rate, epochs, train_rows, val_rows) for epochs in model.epochs for rate in model.rates
        ]
        outcome.chosen[name] = best = max(outcome.candidates[name], key=lambda candidate: candidate.score)
        runs.log(f"{model.title}: learning rate {best.rate:g}, {best.epochs} epochs, validation {100 * best.score:.1f}")


def _cross_validate(runs: ComparisonRuns, outcome: Outcome, folds: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Step 4: for each model, logits [seeds, M, C] of models that were not trained on the image."""
    settings, all_rows = outcome.settings, list(range(len(runs.labels)))
    scores = {name: torch.zeros(settings.seeds, *runs.labels.shape) for name in settings.models}
    for name, best in outcome.chosen.items():
        outcome.folds[name], outcome.pooled[name] = [], []
        for seed in range(settings.seeds):
            logits = scores[name][seed]
            for fold in folds:
                train_rows = sorted(set(all_rows) - set(fold))
                logits[fold] = runs.logits(name, best, train_rows, fold, seed)
            outcome.folds[name].append([runs.mean_ap(logits[fold], fold) for fold in folds])
            outcome.pooled[name].append(runs.mean_ap(logits, all_rows))
            runs.log(f"{MODELS[name].title}: folds of seed {seed}: {100 * np.mean(outcome.folds[name][-1]):.1f}")
    return scores


def _save_predictions(
    path: Path, runs: ComparisonRuns, folds: Sequence[Sequence[int]], scores: dict[str, Tensor]
) -> None:
    """Labels [M, C], ids, the fold of each image, and ``logits_<model>`` [seeds, M, C]."""
    fold_of = np.zeros(len(runs.labels), dtype=np.int64)
    for number, fold in enumerate(folds):
        fold_of[list(fold)] = number
    arrays: dict[str, Any] = {f"logits_{name}": value.numpy() for name, value in scores.items()}
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, labels=runs.labels.numpy(), ids=np.array(runs.ids), fold=fold_of, **arrays)


def paired_bootstrap(
    scores: dict[str, Tensor],
    labels: Tensor,
    draws: int = 2000,
    definition: str = "voc2010",
    *,
    baseline: str = BASELINE,
    difficult: str | None = None,
    seed: int = 0,
) -> dict[str, Gap]:
    """The gap of mAP of each model to the baseline, with the middle 95 % of its bootstrap distribution over images.

    A draw takes M of the M images with replacement, the same for every model and seed; a class without positives in a
    draw is left out of that draw's mAP, for all models.

    Args:
        scores: [seeds, M, C] logits by model.
        labels: [M, C] in {1, 0, -1}.
        draws: number of draws.
        definition: of average precision.
        baseline: the name of the model that the others are compared with.
        difficult: the rule for difficult labels, 0; see :func:`ssgrl_fast.metrics.average_precision`.
        seed: of the draws.

    Raises:
        ValueError: no such baseline, or shapes that differ.
    """
    shapes = {name: tuple(value.shape[1:]) for name, value in scores.items()}
    if baseline not in scores or any(shape != tuple(labels.shape) for shape in shapes.values()):
        raise ValueError(f"paired_bootstrap: needs {baseline!r} and scores [seeds, {list(labels.shape)}], got {shapes}")

    def mean_ap(name: str, rows: Tensor) -> float:
        rule: dict[str, Any] = {"definition": definition, "difficult": difficult}
        values = [average_precision(one[rows], labels[rows], **rule) for one in scores[name]]
        return float(torch.stack(values).nanmean(1).mean())

    rng = np.random.default_rng(seed)
    all_rows = torch.arange(len(labels))
    value = {name: mean_ap(name, all_rows) for name in scores}
    drawn_gaps: dict[str, list[float]] = {name: [] for name in scores if name != baseline}
    for _ in range(draws):
        rows = torch.from_numpy(rng.integers(0, len(labels), len(labels)))
        reference = mean_ap(baseline, rows)
        for name, gaps in drawn_gaps.items():
            gaps.append(mean_ap(name, rows) - reference)
    return {
        name: Gap(value[name] - value[baseline], *(float(end) for end in np.percentile(gaps, [2.5, 97.5])))
        for name, gaps in drawn_gaps.items()
    }
