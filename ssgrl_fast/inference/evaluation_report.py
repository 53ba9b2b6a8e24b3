"""The report of an evaluation: its tables, pictures and files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssgrl_fast import __version__
from ssgrl_fast._utils.files import write_json, write_text
from ssgrl_fast.data.base import MultiLabelDataset
from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.inference.evaluation import Protocol, attention_samples, prf_above, score_images, tune_thresholds
from ssgrl_fast.inference.predict import Predictor, _predictor
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
from ssgrl_fast.metrics.report import defined, markdown_cell, percent
from ssgrl_fast.modules.graph_propagation import MODES

FORMAT = "ssgrl_fast.inference.evaluation"


def _tuned_cuts(
    predictor: Predictor,
    data: MultiLabelDataModule,
    protocol: Protocol,
    difficult: str,
    working: Mapping[str, Any],
    progress: bool,
) -> dict[str, Any]:
    """Cuts [C] as logits, and which images chose them."""
    from ssgrl_fast.data.splits import selection

    held_out = data.val_dataset
    if data.options.val_split == "test_split" or held_out is None:
        raise ValueError(
            "evaluate: --thresholds tune needs held-out images that are not the test images: give --data.val_fraction "
            "as in training, or --data.val_split"
        )
    logits = score_images(predictor, held_out, protocol, **working, progress="held-out images" if progress else None)
    cuts = tune_thresholds(logits, held_out.labels, difficult=difficult)
    shared = set(getattr(held_out, "paths", ())) & set(getattr(data.test_dataset, "paths", ()))
    overlap = f"; {len(shared)} of them are evaluated as well, so this is optimistic" if shared else ""
    return {"cuts": cuts, "source": f"{len(held_out)} images: {selection(data)}{overlap}"}


def _report(
    predictor: Predictor, data: MultiLabelDataModule, protocol: Protocol, scores: Tensor, measured: Mapping[str, Any]
) -> Report:
    assert data.test_dataset is not None  # main has looked
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
    measured_on: dict[str, Any] = {name: facts[name] for name in ("mode", "backend", "device", "dtype")}
    labels, ids = data.test_dataset.labels, data.test_dataset.ids
    names = predictor.class_names
    return evaluate(scores, labels, names, **measured, **measured_on, details=details, ids=ids)


def _rival(options: Any, dataset: MultiLabelDataset, measured: Mapping[str, Any]) -> Report | Predictor | None:
    """What --baseline names, held to the data before anything is scored: a report, or a bundle to be scored.

    Raises:
        ValueError: a report of other images, labels or classes, or by another definition of AP or difficult rule; a
            bundle of other classes.
    """
    if options.baseline is None:
        return None
    if Path(options.baseline).is_file():
        report = Report.from_json(options.baseline)
        labels, ids = dataset.labels, dataset.ids
        here = evaluate(torch.zeros(labels.shape), labels, dataset.class_names, **measured, ids=ids)
        baseline_ap(here, report, names=("this evaluation", f"the baseline {options.baseline}"))
        return report
    predictor = _predictor(options.baseline, options, backend=None)  # it may have no head that a backend computes
    if predictor.class_names != list(dataset.class_names):
        raise ValueError(f"evaluate: the baseline {options.baseline} has other classes than the data")
    return predictor


def _thresholds(report: Report, scores: Tensor, labels: Tensor, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """What the tuned cuts are and give on the evaluated images."""
    cuts: Tensor = tuned["cuts"]
    return {
        "tuned_on": tuned["source"],
        "probability": dict(zip(report.class_names, cuts.sigmoid().tolist(), strict=True)),
        "logit": dict(zip(report.class_names, cuts.tolist(), strict=True)),
        "all_labels": prf_above(scores, labels, cuts, difficult=report.difficult),
        "top_k_labels": prf_above(scores, labels, cuts, top_k=report.top_k, difficult=report.difficult),
    }


def _write(
    folder: Path,
    report: Report,
    baseline: Report | None,
    scores: Tensor,
    labels: Tensor,
    tuned: Mapping[str, Any] | None,
    protocol: Protocol,
    options: Any,
) -> str:
    """All files but the attention sheet; the Markdown, without its pictures, for the screen."""
    from ssgrl_fast.inference.figures import ap_chart, save_figure

    rivals = None if baseline is None else baseline_ap(report, baseline, names=("the model", "the baseline"))
    by_definition = {
        name: average_precision(scores, labels, definition=name, difficult=report.difficult) for name in AP_DEFINITIONS
    }
    means = {name: ap[~ap.isnan()].mean().item() for name, ap in by_definition.items()}
    thresholds = None if tuned is None else _thresholds(report, scores, labels, tuned)
    content = {
        "format": FORMAT,
        "unit": "fraction",
        "protocol": {
            "views": protocol.views,
            "scales": [list(pair) for pair in protocol.scales],
            "fuse": protocol.fuse,
        },
        "mean_ap": means,
        "ap": {name: dict(zip(report.class_names, ap.tolist(), strict=True)) for name, ap in by_definition.items()},
        "baseline": options.baseline,
        "thresholds": thresholds,
    }
    report.to_json(folder / "report.json")
    if baseline is not None and not Path(options.baseline).is_file():
        baseline.to_json(folder / "baseline.json")
    write_json(folder / "evaluation.json", defined(content))
    note = (
        f"AP definition {report.ap_definition}, difficult rule {report.difficult}, {report.images} images; {protocol}"
    )
    save_figure(
        ap_chart(report.class_names, report.ap, baseline=rivals, labels=_titles(report, baseline), note=note),
        folder / "ap.png",
    )
    tables = _markdown(report, baseline, means, thresholds)
    sheet = options.attention and report.mode in MODES
    pictures = "\n![AP of every class](ap.png)\n" + ("\n![Attention](attention.png)\n" if sheet else "")
    write_text(folder / "report.md", tables + pictures)
    return tables


def _markdown(
    report: Report, baseline: Report | None, means: Mapping[str, float], thresholds: Mapping[str, Any] | None
) -> str:
    methods = dict(zip(_titles(report, baseline), [report] if baseline is None else [report, baseline], strict=False))
    lines = ["# Evaluation", "", "Table 1's columns, per cent:", "", table_1(methods)]
    lines += ["mAP by each definition (per cent):", "", f"| {' | '.join(means)} |", "|---" * len(means) + "|"]
    lines += [f"| {' | '.join(map(percent, means.values()))} |", ""]
    if thresholds is not None:
        lines += [f"With the threshold of each class tuned on {thresholds['tuned_on']} (per cent):", ""]
        lines += [f"| labels | {' | '.join(PRF_NAMES)} |", "|---" * (len(PRF_NAMES) + 1) + "|"]
        for title, part in (("all", "all_labels"), (f"top {report.top_k}", "top_k_labels")):
            lines.append(f"| {title} | {' | '.join(percent(thresholds[part][name]) for name in PRF_NAMES)} |")
        shown = ", ".join(f"{markdown_cell(name)} {cut:.3f}" for name, cut in thresholds["probability"].items())
        lines += ["", f"Thresholds: {shown}.", ""]
    lines.append(report.to_markdown())
    if baseline is not None:
        lines += [
            "Every class beside the baseline (per cent, the largest gain first):",
            "",
            class_table(report, baseline, names=_titles(report, baseline)),
        ]
    return "\n".join(lines)


def _titles(report: Report, baseline: Report | None) -> tuple[str, str]:
    """What tables and pictures call the two."""
    return row_title("model", report), "baseline" if baseline is None else row_title("baseline", baseline)


def _write_attention(
    path: Path, predictor: Predictor, dataset: MultiLabelDataset, protocol: Protocol, count: int
) -> None:
    from ssgrl_fast.inference.figures import attention_sheet, save_figure

    samples = attention_samples(predictor, dataset, protocol.scales[0], count)
    save_figure(attention_sheet(samples, predictor.class_names), path)
