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

from ssgrl_fast._utils.checks import need
from ssgrl_fast.cli.option_groups import group_options
from ssgrl_fast.inference.evaluation import (
    FUSIONS,
    Protocol,
    scale_of,
    score_images,
)
from ssgrl_fast.inference.evaluation_report import _report, _rival, _tuned_cuts, _write, _write_attention
from ssgrl_fast.inference.predict import Predictor, _predictor
from ssgrl_fast.labels.class_names import check_same_classes
from ssgrl_fast.labels.matrix import DIFFICULT_RULES
from ssgrl_fast.metrics import (
    AP_DEFINITIONS,
)
from ssgrl_fast.models import SSGRL
from ssgrl_fast.training.options import MODE_DEFAULTS

if TYPE_CHECKING:
    from ssgrl_fast.data.datamodule import MultiLabelDataModule


def main(arguments: Sequence[str]) -> int:
    """Run ``evaluate`` with the arguments that follow the verb.

    Raises:
        SystemExit: wrong usage (2) or --help (0).
        ValueError, FileNotFoundError: a model, data set or baseline that does not fit, a model that cannot be quantized
            for --dtype fp8; see :class:`Predictor`, :class:`~ssgrl_fast.data.datamodule.MultiLabelDataModule` and
            :class:`~ssgrl_fast.inference.evaluation.Protocol`.
    """
    options = _parse(arguments)
    folder = Path(options.output)
    if (folder / "report.json").exists() and not options.overwrite:
        raise FileExistsError(f"evaluate: {folder} holds a report.json: name another --output or give --overwrite")
    predictor = _predictor(options.model, options, backend=options.backend)
    data = _data(options.data, predictor.class_names)
    dataset = data.test_dataset
    if dataset is None:
        raise ValueError(f"evaluate: {data.options.root}: no test split was found or named: give --data.test_split")
    protocol = _protocol(options, predictor)
    recipe = predictor.model.recipe or {}
    measured = {
        "ap_definition": options.ap_definition or recipe.get("AP", "voc2010"),
        "difficult": options.difficult or recipe.get("difficult") or _difficult(predictor),
    }
    working = {"batch_size": options.batch_size, "num_workers": data.options.num_workers}
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
    from ssgrl_fast.data.datamodule import MultiLabelDataModule
    from ssgrl_fast.data.options import DATA_GROUPS

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
    group_options(parser, "data", DATA_GROUPS)
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


def _data(section: Any, class_names: Sequence[str]) -> MultiLabelDataModule:
    """The data module, its classes in the model's order where nobody gave one."""
    from ssgrl_fast.data.datamodule import MultiLabelDataModule

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


# ---- writing ---------------------------------------------------------------------------------------------------------
