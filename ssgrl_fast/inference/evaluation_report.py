"""The evaluation of a model on a data set, beside a baseline, with its tables, pictures and files.

| file | content |
|---|---|
| report.json | the report in the format of `test`, for ``plot-ap`` and as a later baseline |
| evaluation.json | protocol, mAP and AP of every class by all three definitions, tuned thresholds and their results |
| report.md | all of it as tables, with the two pictures |
| ap.png | AP of every class, beside the baseline's if there is one (Fig. 3) |
| attention.png | images, attention maps, label distributions, true labels in red (Fig. 4); of SSGRL |
| worst.png | the images with the largest loss, in the form of attention.png, where they are asked for |
| localisation.png | attention and boxes where they agree most and least, with ``--localisation`` |
| removal.png | the scores of true labels while cells of the map are removed, with ``--removal`` |
| baseline.json | the report of the baseline, if it was evaluated here |

M is the number of images, C the number of classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ssgrl_fast._utils.escape import for_markdown
from ssgrl_fast._utils.files import write_json, write_text
from ssgrl_fast._version import __version__
from ssgrl_fast.inference.evaluation import Protocol, prf_above, score_images, tune_thresholds
from ssgrl_fast.inference.figures import ap_chart, save_figure
from ssgrl_fast.inference.localisation import Localisation
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.inference.removal import Removal, removal_chart
from ssgrl_fast.metrics import (
    AP_DEFINITIONS,
    PRE,
    PRF_NAMES,
    Report,
    average_precision,
    baseline_ap,
    class_table,
    evaluate,
    row_title,
    table_1,
)
from ssgrl_fast.metrics.report import defined, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssgrl_fast.data.base import MultiLabelDataset
    from ssgrl_fast.data.datamodule import MultiLabelDataModule

__all__ = ["FORMAT", "Evaluation", "Thresholds", "evaluate_model", "test_images", "tune_on_held_out"]

FORMAT = "ssgrl_fast.inference.evaluation"


@dataclass(frozen=True)
class Thresholds:
    """A threshold per class, tuned on images that are not evaluated.

    Attributes:
        logits: float64 [C]; a label is predicted above its class's.
        images: which images they were tuned on, as text.
    """

    logits: Tensor
    images: str


@dataclass(frozen=True)
class Evaluation:
    """A model evaluated on M images.

    Attributes:
        report: of the model.
        scores: fused logits, float64 [M, C].
        labels: [M, C], bool or 1, 0, -1.
        protocol: views, scales and fusion.
        baseline: the report of the baseline, or None.
        baseline_source: the bundle or the report file of the baseline, or None.
        thresholds: tuned on other images, or None.
        localisation: of the attention in the boxes of the objects, or None.
        removal: of cells of the map, or None.
    """

    report: Report
    scores: Tensor
    labels: Tensor
    protocol: Protocol
    baseline: Report | None = None
    baseline_source: str | None = None
    thresholds: Thresholds | None = None
    localisation: Localisation | None = None
    removal: Removal | None = None

    @cached_property
    def ap(self) -> dict[str, Tensor]:
        """AP of every class by each definition, float64 [C], NaN for a class without positives."""
        rule = self.report.difficult
        return {
            name: average_precision(self.scores, self.labels, definition=name, difficult=rule)
            for name in AP_DEFINITIONS
        }

    @cached_property
    def mean_ap(self) -> dict[str, float]:
        """mAP over the classes with positives, by each definition."""
        return {name: ap[~ap.isnan()].mean().item() for name, ap in self.ap.items()}

    @cached_property
    def tuned(self) -> dict[str, Any] | None:
        """The tuned thresholds and their results on the evaluated images (eq. 13), as plain values; None without."""
        if self.thresholds is None:
            return None
        cuts, names, rule = self.thresholds.logits, self.report.class_names, self.report.difficult
        return {
            "tuned_on": self.thresholds.images,
            "probability": dict(zip(names, cuts.sigmoid().tolist(), strict=True)),
            "logit": dict(zip(names, cuts.tolist(), strict=True)),
            "all_labels": prf_above(self.scores, self.labels, cuts, difficult=rule),
            "top_k_labels": prf_above(self.scores, self.labels, cuts, top_k=self.report.top_k, difficult=rule),
        }

    @property
    def titles(self) -> tuple[str, str]:
        """The names of model and baseline in tables and pictures."""
        baseline = "baseline" if self.baseline is None else row_title("baseline", self.baseline)
        return row_title("model", self.report), baseline

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an undefined value is None."""
        names = self.report.class_names
        content = {
            "format": FORMAT,
            "unit": "fraction",
            "protocol": {
                "views": self.protocol.views,
                "scales": [list(pair) for pair in self.protocol.scales],
                "fuse": self.protocol.fuse,
            },
            "mean_ap": self.mean_ap,
            "ap": {name: dict(zip(names, ap.tolist(), strict=True)) for name, ap in self.ap.items()},
            "baseline": self.baseline_source,
            "thresholds": self.tuned,
            "localisation": None if self.localisation is None else self.localisation.to_dict(),
            "removal": None if self.removal is None else self.removal.to_dict(),
        }
        plain: dict[str, Any] = defined(content)
        return plain

    def to_markdown(self) -> str:
        """All tables in Markdown, values in per cent."""
        report, baseline, tuned = self.report, self.baseline, self.tuned
        reports = [report] if baseline is None else [report, baseline]
        methods = dict(zip(self.titles, reports, strict=False))
        # Table 1's columns, and mAP by each definition
        lines = ["# Evaluation", "", "The columns of Table 1 (per cent):", "", table_1(methods)]
        lines += ["mAP by each definition (per cent):", "", f"| {' | '.join(self.mean_ap)} |"]
        lines += ["|---" * len(self.mean_ap) + "|", f"| {' | '.join(map(percent, self.mean_ap.values()))} |", ""]
        # the tuned thresholds and their results
        if tuned is not None:
            lines += [f"With the threshold of each class tuned on {for_markdown(tuned['tuned_on'])} (per cent):", ""]
            lines += [f"| labels | {' | '.join(PRF_NAMES)} |", "|---" * (len(PRF_NAMES) + 1) + "|"]
            for title, part in (("all", "all_labels"), (f"top {report.top_k}", "top_k_labels")):
                lines.append(f"| {title} | {' | '.join(percent(tuned[part][name]) for name in PRF_NAMES)} |")
            cuts = ", ".join(f"{for_markdown(name)} {cut:.3f}" for name, cut in tuned["probability"].items())
            lines += ["", f"Thresholds: {cuts}.", ""]
        # every class
        lines.append(report.to_markdown())
        if baseline is not None:
            lines += ["Every class beside the baseline (per cent, the largest gain first):", ""]
            lines.append(class_table(report, baseline, names=self.titles))
        lines += [part.to_markdown() for part in (self.localisation, self.removal) if part is not None]
        return "\n".join(lines)

    def worst(self, count: int) -> list[int]:
        """Rows of the images with the largest cross entropy over the classes that are known, the largest first."""
        known = (
            (self.labels == 1) | (self.labels == -1) if self.labels.dtype != torch.bool else self.labels.new_ones(())
        )
        each = binary_cross_entropy_with_logits(self.scores, (self.labels == 1).double(), reduction="none")
        order = (each * known).sum(1).argsort(descending=True, stable=True)
        rows: list[int] = order[:count].tolist()
        return rows

    def save(
        self,
        folder: Path,
        *,
        attention: Callable[[], Figure] | None = None,
        worst: Callable[[], Figure] | None = None,
        localisation: Callable[[], Figure] | None = None,
    ) -> list[str]:
        """Write the files of the module's table, the numbers first; earlier files of the same names are replaced.

        A picture that cannot be drawn is left out of report.md, where a line says why; its earlier file is removed.

        Args:
            folder: made if it does not exist.
            attention: draws the attention sheet; None: no attention.png.
            worst: draws the images of :meth:`worst`; None: no worst.png.
            localisation: draws attention and boxes; None: no localisation.png.

        Returns:
            A sentence for each picture that could not be drawn or written.

        Raises:
            OSError: a file of numbers could not be written; the earlier file of that name is as it was.
            ValueError: the baseline's report is not comparable.
        """
        report, baseline = self.report, self.baseline
        beside = None if baseline is None else baseline_ap(report, baseline, names=("the model", "the baseline"))
        # the numbers
        report.to_json(folder / "report.json")
        if baseline is not None and not Path(self.baseline_source or "").is_file():
            baseline.to_json(folder / "baseline.json")
        write_json(folder / "evaluation.json", self.to_dict())
        tables = self.to_markdown()
        write_text(folder / "report.md", tables)
        # the pictures, which the report then shows
        definition = f"AP definition {report.ap_definition}, difficult rule {report.difficult}"
        note = f"{definition}, {report.images} images; {self.protocol}"

        def chart() -> Figure:
            return ap_chart(report.class_names, report.ap, baseline=beside, labels=self.titles, note=note)

        drawings = {"ap.png": ("AP of every class", chart)}
        curves = None if self.removal is None else partial(removal_chart, self.removal)
        sheets = {
            "attention.png": ("Attention", attention),
            "worst.png": ("Images with the largest loss", worst),
            "localisation.png": ("Attention and boxes", localisation),
            "removal.png": ("Scores while cells are removed", curves),
        }
        drawings |= {name: (title, draw) for name, (title, draw) in sheets.items() if draw is not None}
        shown, failed = [], []
        for name, (title, draw) in drawings.items():
            try:
                save_figure(draw(), folder / name)
                shown.append(f"\n![{title}]({name})\n")
            except Exception as error:  # of fonts, drawing, the disk: the numbers stay
                (folder / name).unlink(missing_ok=True)
                failed.append(f"{name} could not be drawn: {type(error).__name__}: {error}")
                shown.append(f"\n{for_markdown(failed[-1].splitlines()[0])}\n")
        write_text(folder / "report.md", tables + "".join(shown))
        return failed


def evaluate_model(
    predictor: Predictor,
    data: MultiLabelDataModule,
    protocol: Protocol,
    *,
    ap_definition: str = "voc2010",
    difficult: str = "ignore",
    baseline: str | Path | Predictor | None = None,
    tune: bool = False,
    batch_size: int = 16,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a model on the test images of a data set, and perhaps a baseline on the same images.

    Args:
        predictor: the model; its own image size is not used.
        data: with test images whose classes are the model's, in the model's order.
        protocol: views, scales and fusion.
        ap_definition: of the report; :attr:`Evaluation.ap` has all three.
        difficult: "ignore", "positive" or "negative" (D27).
        baseline: the file of a report over the same images, or a model to evaluate in the same way; None: none.
        tune: also tune a threshold per class (:func:`tune_on_held_out`).
        batch_size: views per batch, about.
        progress: show progress bars on standard error.

    Raises:
        ValueError: no test images; a baseline over other images, labels or classes, or by another AP definition or
            difficult rule, before any image is scored; as :func:`tune_on_held_out` and :func:`score_images`.
        FileNotFoundError, BrokenImage: a file that does not exist or cannot be read, by name.
    """
    dataset = test_images(data)
    # the baseline is checked first, so that nothing is computed in vain
    baseline_report: Report | None = None
    if isinstance(baseline, Predictor):
        if baseline.class_names != list(dataset.class_names):
            raise ValueError(f"evaluate: the baseline {baseline.source} has other classes than the data")
    elif baseline is not None:
        baseline_report = _read_baseline(baseline, dataset, ap_definition, difficult)
    thresholds = None
    if tune:
        thresholds = tune_on_held_out(
            predictor, data, protocol, difficult=difficult, batch_size=batch_size, progress=progress
        )
    # scores of the model, then of the baseline
    loading = {"batch_size": batch_size}
    scores = score_images(predictor, dataset, protocol, **loading, progress="images" if progress else None)
    report = _report(predictor, data, protocol, scores, ap_definition, difficult)
    if isinstance(baseline, Predictor):
        rated = score_images(baseline, dataset, protocol, **loading, progress="baseline" if progress else None)
        baseline_report = _report(baseline, data, protocol, rated, ap_definition, difficult)
    source = baseline.source if isinstance(baseline, Predictor) else None if baseline is None else str(baseline)
    return Evaluation(report, scores, dataset.labels, protocol, baseline_report, source, thresholds)


def test_images(data: MultiLabelDataModule) -> MultiLabelDataset:
    """The test images of a data set.

    Raises:
        ValueError: it has none.
    """
    if data.test_dataset is None:
        ways = "--data.test_split names one, --data.folds 5 sets a fifth of the images aside"
        raise ValueError(f"evaluate: {data.options.root}: no test split was found or named; {ways}")
    return data.test_dataset


def tune_on_held_out(
    predictor: Predictor,
    data: MultiLabelDataModule,
    protocol: Protocol,
    *,
    difficult: str = "ignore",
    batch_size: int = 16,
    progress: bool = False,
) -> Thresholds:
    """Tune a threshold per class on the validation images (:func:`~ssgrl_fast.inference.evaluation.tune_thresholds`).

    Arguments as for :func:`evaluate_model`.

    Raises:
        ValueError: the data have no validation images, or the test images are used as such.
    """
    from ssgrl_fast.data.splits import selection

    held_out = data.val_dataset
    if data.options.val_split == "test_split" or held_out is None:
        raise ValueError(
            "evaluate: --thresholds tune needs held-out images that are not the test images: give --data.val_fraction "
            "as in training, or --data.val_split"
        )
    bar = "held-out images" if progress else None
    logits = score_images(predictor, held_out, protocol, batch_size=batch_size, progress=bar)
    cuts = tune_thresholds(logits, held_out.labels, difficult=difficult)
    shared = set(getattr(held_out, "paths", ())) & set(getattr(data.test_dataset, "paths", ()))
    overlap = f"; {len(shared)} of them are evaluated as well, so this is optimistic" if shared else ""
    return Thresholds(cuts, f"{len(held_out)} images: {selection(data)}{overlap}")


def _read_baseline(path: str | Path, dataset: MultiLabelDataset, ap_definition: str, difficult: str) -> Report:
    """A report file, compared with the data before any score exists: a report of scores 0 has the same images."""
    baseline = Report.from_json(path)
    labels = dataset.labels
    expected = evaluate(
        torch.zeros(labels.shape), labels, dataset.class_names, ap_definition, difficult, ids=dataset.ids
    )
    baseline_ap(expected, baseline, names=("this evaluation", f"the baseline {path}"))
    return baseline


def _report(
    predictor: Predictor,
    data: MultiLabelDataModule,
    protocol: Protocol,
    scores: Tensor,
    ap_definition: str,
    difficult: str,
) -> Report:
    """The report over the test images, with what the scores depend on."""
    dataset = data.test_dataset
    assert dataset is not None  # evaluate_model has checked
    facts, recipe = predictor.facts(), predictor.model.recipe or {}
    given = data.options
    details = {
        "model": f"{facts['kind']}, {facts['model']}",
        "protocol": str(protocol),
        "data": f"{given.kind} {given.root or ''} test split {given.test_split or 'of the set'}".replace("  ", " "),
        "seed of training": recipe.get("seed", "not stated"),
        "epoch selected on": recipe.get("selected on", "not stated"),
        "recipe": ", ".join(f"{name} {value}" for name, value in recipe.items()) or "not stated",
        **({PRE: recipe[PRE]} if PRE in recipe else {}),
        "versions": f"ssgrl_fast {__version__}, torch {torch.__version__}",
    }
    return evaluate(
        scores,
        dataset.labels,
        predictor.class_names,
        ap_definition,
        difficult,
        mode=facts["mode"],
        backend=facts["backend"],
        device=facts["device"],
        dtype=facts["dtype"],
        details=details,
        ids=dataset.ids,
    )
