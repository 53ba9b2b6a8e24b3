"""The verb ``evaluate``: a bundle by the paper's protocols, with a report in one folder.

ssgrl-fast evaluate --model runs/coco/version_0/bundle --config configs/coco.yaml --data.root coco --views ten-crop
    --scales 640 512 --fuse probabilities --baseline runs/pooling/version_0/bundle --thresholds tune --output report

`test` belongs to a run: Lightning evaluates a checkpoint as it was trained, by one view. `evaluate` belongs to a model:
a bundle, whoever trained or converted it, without a trainer; it asks how the images are to be looked at.

| file | what |
|---|---|
| report.json | the report that `test` writes too, for `plot-ap` and as a later baseline |
| evaluation.json | protocol, mAP and AP of every class by all three definitions, thresholds and what they give |
| report.md | all of it as tables, with the two pictures |
| ap.png | AP of every class, beside the baseline's where there is one (Fig. 3) |
| attention.png | images, attention maps, label distributions, true labels in red (Fig. 4); for SSGRL |
| baseline.json | the report of the baseline, where it was evaluated here |
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import __version__
from ._atomic import write_json, write_text
from .assembly import MODE_DEFAULTS
from .checks import need
from .class_names import check_same_classes
from .evaluation import (
    FUSIONS,
    Protocol,
    attention_samples,
    prf_above,
    scale_of,
    score_images,
    tune_thresholds,
)
from .labels import DIFFICULT_RULES
from .metrics import (
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
from .metrics.report import defined, markdown_cell, percent
from .models import SSGRL
from .predict import Predictor

if TYPE_CHECKING:
    from .data.base import MultiLabelDataset
    from .data.datamodule import MultiLabelDataModule

FORMAT = "ssgrl_fast.evaluation"


def main(arguments: Sequence[str]) -> int:
    """Run ``evaluate`` with the arguments that follow the verb.

    Raises:
        SystemExit: wrong usage (2) or --help (0).
        ValueError, FileNotFoundError: a model, data set or baseline that does not fit, a model that cannot be quantized
            for --dtype fp8; see :class:`Predictor`, :class:`~ssgrl_fast.data.datamodule.MultiLabelDataModule` and
            :class:`~ssgrl_fast.evaluation.Protocol`.
    """
    options = _parse(arguments)
    folder = Path(options.output)
    if (folder / "report.json").exists() and not options.overwrite:
        raise FileExistsError(f"evaluate: {folder} holds a report.json: name another --output or give --overwrite")
    predictor = _predictor(options.model, options, backend=options.backend)
    data = _data(options.data, predictor.class_names)
    dataset = data.test_dataset
    if dataset is None:
        raise ValueError(f"evaluate: {data.root}: no test split was found or named: give --data.test_split")
    protocol = _protocol(options, predictor)
    recipe = predictor.model.recipe or {}
    measured = {
        "ap_definition": options.ap_definition or recipe.get("AP", "voc2010"),
        "difficult": options.difficult or recipe.get("difficult") or _difficult(predictor),
    }
    working = {"batch_size": options.batch_size, "num_workers": data.num_workers}
    baseline = _rival(options, dataset, measured)
    tuned = None
    if options.thresholds == "tune":
        tuned = _tuned_cuts(predictor, data, protocol, measured["difficult"], working, not options.no_progress)
    scores = score_images(predictor, dataset, protocol, **working, progress=_bar("images", options))
    report = _report(predictor, data, protocol, scores, measured)
    if isinstance(baseline, Predictor):
        rated = score_images(baseline, dataset, protocol, **working, progress=_bar("baseline", options))
        baseline = _report(baseline, data, protocol, rated, measured)
    written = _write(folder, report, baseline, scores, dataset.labels, tuned, protocol, options)
    if options.attention and isinstance(predictor.model, SSGRL):
        _write_attention(folder / "attention.png", predictor, dataset, protocol, options.attention)
    print(written)
    print(f"report in {folder}")
    return 0


# ---- what is asked for -----------------------------------------------------------------------------------------------


def _parse(arguments: Sequence[str]) -> Any:
    """The options; data.* as `fit` takes them, from --config files first (their other sections are not looked at)."""
    jsonargparse = need("jsonargparse", "train", "ssgrl-fast evaluate")
    from .data.datamodule import MultiLabelDataModule

    text = "evaluate a bundle by the paper's protocols: views, scales, thresholds; a report with tables and pictures"
    parser = jsonargparse.ArgumentParser(prog="ssgrl-fast evaluate", description=text)
    add = parser.add_argument
    add("--model", required=True, metavar="BUNDLE", help="folder of a bundle, or a Hub repository")
    add("--output", required=True, metavar="DIR", help="folder of the report")
    add(
        "--config", action="append", default=[], metavar="FILE", help="recipe or config.yaml whose data section is used"
    )
    add(
        "--views", default="single", choices=["single", "ten-crop"], help="centre crop, or corners, centre and mirrored"
    )
    add("--scales", type=int, nargs="+", metavar="SIDE", help="sides images are resized to, 640 512 (the bundle's)")
    add("--fuse", default="logits", choices=list(FUSIONS), help="what is averaged over views and scales")
    add("--baseline", metavar="BUNDLE_OR_JSON", help="a bundle to evaluate likewise, or a report.json")
    add("--thresholds", default="half", choices=["half", "tune"], help="0.5, or tuned a class on the validation images")
    add("--ap-definition", choices=list(AP_DEFINITIONS), help="of the report (the recipe's; all three are listed)")
    add("--difficult", choices=list(DIFFICULT_RULES), help="rule for difficult objects (the recipe's)")
    add("--attention", type=int, default=6, help="rows of the attention sheet, 0 for none")
    add("--batch-size", type=int, default=16, help="views at a time")
    add("--device", default="cpu", help="where the model runs")
    add(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16", "float64", "fp8"],
        help="of the model; fp8: bfloat16 with the products of the graph in e4m3, of a baseline too if it has a graph",
    )
    add("--backend", help="backend of the three operations (the fastest)")
    add("--overwrite", action="store_true", help="replace an earlier report in the folder")
    add("--no-progress", action="store_true", help="show no progress bar")
    parser.add_class_arguments(MultiLabelDataModule, "data")
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", action="append", default=[])
    for path in early.parse_known_args(list(arguments))[0].config:
        try:
            parser.set_defaults({f"data.{name}": value for name, value in _data_section(Path(path)).items()})
        except KeyError as error:
            raise ValueError(f"evaluate: {path}: its data section has an unknown option: {error}") from error
    return parser.parse_args(list(arguments))


def _data_section(path: Path) -> Mapping[str, Any]:
    yaml = need("yaml", "train", "ssgrl-fast evaluate")
    if not path.is_file():
        raise FileNotFoundError(f"evaluate: {path}: no such configuration")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"evaluate: {path}: no readable YAML: {error}") from error
    section = content.get("data") if isinstance(content, dict) else None
    if section is not None and not isinstance(section, dict):
        raise ValueError(f"evaluate: {path}: data must be a section of options, got {section!r}")
    return section or {}


def _predictor(bundle: str, options: Any, *, backend: str | None) -> Predictor:
    predictor = Predictor.load(bundle, device=options.device, backend=backend)
    model = predictor.model.to(torch.bfloat16 if options.dtype == "fp8" else getattr(torch, options.dtype))
    if options.dtype != "fp8":
        return predictor
    if isinstance(model, SSGRL) and model.head.interaction:
        try:
            model.head = model.head.quantize("fp8")
        except ValueError as error:
            raise ValueError(f"evaluate: {bundle} cannot be evaluated with --dtype fp8: {error}") from error
    elif bundle == options.model:  # a baseline without a graph stays in bfloat16
        found = "interaction=False" if isinstance(model, SSGRL) else f"a {type(model).__name__}"
        raise ValueError(f"evaluate: --dtype fp8 needs a --model with a graph, SSGRL's, got {found} in {bundle}")
    return predictor


def _data(section: Any, class_names: Sequence[str]) -> MultiLabelDataModule:
    """The data module, its classes in the model's order where nobody gave one."""
    from .data.datamodule import MultiLabelDataModule

    given = dict(section)
    if given["classes"] is None and given["kind"] != "digits":
        given["classes"] = list(class_names)
    data = MultiLabelDataModule(**given)
    check_same_classes("evaluate: the model", class_names, "the data", data.class_names)
    return data


def _protocol(options: Any, predictor: Predictor) -> Protocol:
    own = ((predictor.resize, predictor.image_size),)
    scales = own if not options.scales else tuple(scale_of(side) for side in options.scales)
    return Protocol(options.views, scales, options.fuse)


def _difficult(predictor: Predictor) -> str:
    mode = predictor.facts()["mode"]
    return MODE_DEFAULTS[mode]["difficult"] if mode in MODE_DEFAULTS else "ignore"


def _bar(name: str, options: Any) -> str | None:
    return None if options.no_progress else name


# ---- measuring -------------------------------------------------------------------------------------------------------


def _tuned_cuts(
    predictor: Predictor,
    data: MultiLabelDataModule,
    protocol: Protocol,
    difficult: str,
    working: Mapping[str, Any],
    progress: bool,
) -> dict[str, Any]:
    """Cuts [C] as logits, and which images chose them."""
    from .runs import selection

    held_out = data.val_dataset
    if data.val_split == "test_split" or held_out is None:
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
    details = {
        "model": f"{facts['kind']}, {facts['model']}",
        "protocol": str(protocol),
        "data": f"{data.kind} {data.root or ''} test split {data.test_split or 'of the set'}".replace("  ", " "),
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


# ---- writing ---------------------------------------------------------------------------------------------------------


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
    from .visualize import ap_chart, save_figure

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
    sheet = options.attention and report.mode in MODE_DEFAULTS
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
    from .visualize import attention_sheet, save_figure

    samples = attention_samples(predictor, dataset, protocol.scales[0], count)
    save_figure(attention_sheet(samples, predictor.class_names), path)
