"""The verb ``evaluate``: a bundle by the paper's protocols, with a report in one folder.

ssgrl-fast evaluate --model runs/coco/version_0/bundle --config configs/coco.yaml --data.root coco --views ten-crop
    --scales 640 512 --fuse probabilities --baseline runs/pooling/version_0/bundle --thresholds tune --output report

``test`` evaluates a checkpoint of a run as it was trained, by one view. ``evaluate`` takes a bundle, trained or
converted by anyone, and the views and scales to look at its images by. :mod:`ssgrl_fast.inference.evaluation_report`
lists the files it writes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.text import read_text
from ssgrl_fast.cli import VERBS, _shard_report
from ssgrl_fast.cli._option_groups import group_options
from ssgrl_fast.cli._options import add_precision_options, calibration_images
from ssgrl_fast.cli._sentences import say, sentence_parser
from ssgrl_fast.cli.recipes import with_recipes
from ssgrl_fast.inference.evaluation import FUSIONS, Protocol, attention_samples, scale_of
from ssgrl_fast.inference.evaluation_report import evaluate_model, test_images
from ssgrl_fast.inference.figures import attention_sheet
from ssgrl_fast.inference.localisation import localisation_sheet, localise, read_targets
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.inference.removal import measure_removal
from ssgrl_fast.labels.class_names import check_same_classes
from ssgrl_fast.labels.matrix import DIFFICULT_RULES
from ssgrl_fast.metrics import AP_DEFINITIONS
from ssgrl_fast.metrics.report import percent
from ssgrl_fast.models import SSGRL
from ssgrl_fast.training.options import MODE_DEFAULTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssgrl_fast.data.datamodule import MultiLabelDataModule


def main(argv: Sequence[str]) -> int:
    """Run ``evaluate``: print the tables and write the report; status 1 if a picture of it could not be drawn.

    Raises:
        SystemExit: wrong usage (2) or --help (0).
        FileExistsError: the folder already has a report, without --overwrite.
        ValueError, FileNotFoundError: a model, data set or baseline that do not go together, a model that cannot be
            quantized for --dtype fp8; see :class:`Predictor`, :class:`~ssgrl_fast.data.datamodule.MultiLabelDataModule`
            and :class:`~ssgrl_fast.inference.evaluation.Protocol`.
    """
    if _shard_report.is_asked_for(argv):
        return _shard_report.main(argv)
    options = _parse(argv)
    from ssgrl_fast.training.trained_on import SEEN, check_bundle  # needs Lightning, which the parser has asked for

    folder = Path(options.output)
    if (folder / "report.json").exists() and not options.overwrite:
        raise FileExistsError(f"{folder} holds a report.json: name another --output or give --overwrite")
    predictor = _load_model(options)
    data = _data(options.data, predictor.class_names)
    option = None if options.allow_trained_images else "--allow-trained-images"
    seen = None if data.test_dataset is None else check_bundle(options.model, data.test_dataset, option=option)
    protocol = _protocol(options, predictor)
    recipe = predictor.model.recipe or {}
    difficult = options.difficult or recipe.get("difficult") or _difficult_rule(predictor)
    baseline = _load_baseline(options)
    if options.localisation:  # data without boxes are refused before an image is scored
        read_targets(test_images(data), difficult)
    evaluation = evaluate_model(
        predictor,
        data,
        protocol,
        ap_definition=options.ap_definition or recipe.get("AP", "voc2010"),
        difficult=difficult,
        baseline=baseline,
        tune=options.thresholds == "tune",
        batch_size=options.batch_size,
        progress=not options.no_progress,
    )
    if seen is not None:
        details = {**evaluation.report.details, SEEN: seen}
        evaluation = replace(evaluation, report=replace(evaluation.report, details=details))
    localisation: Callable[[], Figure] | None = None
    if options.localisation:
        scale, images = protocol.scales[0], test_images(data)
        rival = baseline if isinstance(baseline, Predictor) else None
        found = localise(predictor, images, scale, difficult=difficult, baseline=rival, batch_size=options.batch_size)
        evaluation = replace(evaluation, localisation=found)
        if options.attention:
            localisation = partial(localisation_sheet, predictor, images, scale, found, options.attention)
    if options.removal:
        removed = measure_removal(
            predictor,
            test_images(data),
            protocol.scales[0],
            images=options.removal,
            difficult=difficult,
            batch_size=options.batch_size,
        )
        evaluation = replace(evaluation, removal=removed)
    other = evaluation.baseline
    beside = "" if other is None else f"; {evaluation.titles[1]} {percent(other.mean_ap)} %"
    say(evaluation.report.brief(beside) if options.brief else evaluation.to_markdown())
    failed = evaluation.save(
        folder,
        attention=_attention(predictor, data, protocol, options.attention),
        worst=_attention(predictor, data, protocol, options.worst, evaluation.worst(options.worst)),
        localisation=localisation,
    )
    for message in failed:
        say(f"ssgrl-fast evaluate: {message}; the numbers are complete", sys.stderr)
    say(f"report in {folder}")
    return 1 if failed else 0


# ---- options ---------------------------------------------------------------------------------------------------------


def _parse(argv: Sequence[str]) -> Any:
    """The options. Those of the data are as ``fit`` takes them, and --config files give their defaults."""
    parser, argv = _parser(), with_recipes(argv)
    configs = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    configs.add_argument("--config", action="append", default=[])
    for path in configs.parse_known_args(argv)[0].config:
        try:
            parser.set_defaults({f"data.{name}": value for name, value in _data_section(Path(path)).items()})
        except KeyError as error:
            raise ValueError(f"{path}: its data section has an unknown option: {error}") from error
    return parser.parse_args(argv)


def _parser() -> Any:
    jsonargparse = need("jsonargparse", "train", "ssgrl-fast evaluate")
    from ssgrl_fast.data.datamodule import MultiLabelDataModule
    from ssgrl_fast.data.options import DATA_GROUPS

    parser = sentence_parser(
        jsonargparse, prog="ssgrl-fast evaluate", description=VERBS["evaluate"], allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="BUNDLE",
        help="bundle, a model as fit exports it: a folder, or a Hub repository",
    )
    add("--output", required=True, metavar="FOLDER", help="folder of the report")
    add(
        "--predictions",
        metavar="SHARDS",
        help="evaluate shards that predict wrote; their options: --predictions SHARDS --help",
    )
    add(
        "--allow-trained-images",
        action="store_true",
        help="measure images that the bundle was trained on as well, which is otherwise refused",
    )
    add(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="recipe or config.yaml whose data section is used; its other sections are ignored",
    )
    add(
        "--views",
        default="single",
        choices=["single", "ten-crop"],
        help="centre crop, or corners and centre, each also mirrored",
    )
    add("--scales", type=int, nargs="+", metavar="SIDE", help="sides to resize images to, as 640 512 (the bundle's)")
    add("--image-size", type=int, help="side of the network's input without --scales, pixels (the bundle's)")
    add("--fuse", default="logits", choices=list(FUSIONS), help="what is averaged over views and scales")
    add("--baseline", metavar="BUNDLE_OR_JSON", help="a bundle to evaluate in the same way, or a report.json")
    add(
        "--thresholds",
        default="half",
        choices=["half", "tune"],
        help="probability 0.5, or a threshold per class tuned on the validation images",
    )
    add("--ap-definition", choices=list(AP_DEFINITIONS), help="AP definition of the report (the recipe's)")
    add("--difficult", choices=list(DIFFICULT_RULES), help="rule for difficult objects (the recipe's)")
    add(
        "--attention",
        type=int,
        default=6,
        help="images of the attention sheet, and of that of --localisation; 0 for none",
    )
    add("--worst", type=int, default=0, help="rows of a sheet of the images with the largest loss, 0 for no sheet")
    add(
        "--localisation",
        action="store_true",
        help="also measure whether attention lies in the boxes of the objects: pointing game and share inside, beside "
        "chance, the centre and the class activation maps of a pooling --baseline; data in VOC or COCO format",
    )
    add(
        "--removal",
        type=int,
        default=0,
        metavar="IMAGES",
        help="number of images on which cells of the map are removed in the order of the attention and in random "
        "order, to see whether the scores of true labels rest on the attended cells; 0 for none",
    )
    add("--batch-size", type=int, default=16, help="views per batch")
    add("--device", default="cpu", help="where the model runs")
    add_precision_options(parser, dtype="float32")
    add("--backend", help="backend of the three operations (the fastest)")
    add("--overwrite", action="store_true", help="replace an earlier report in the folder")
    add("--brief", action="store_true", help="print only mAP; the tables are in the report")
    add("--no-progress", action="store_true", help="show no progress bar")
    parser.add_class_arguments(MultiLabelDataModule, "data")
    group_options(parser, "data", DATA_GROUPS)
    return parser


def _data_section(path: Path) -> Mapping[str, Any]:
    yaml = need("yaml", "train", "ssgrl-fast evaluate")
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: no readable YAML: {error}") from error
    section = content.get("data") if isinstance(content, dict) else None
    if section is not None and not isinstance(section, dict):
        raise ValueError(f"{path}: data must be a section of options, got {section!r}")
    # what only training uses is not imported here
    return {name: value for name, value in (section or {}).items() if name != "train_transform"}


# ---- what the options describe ---------------------------------------------------------------------------------------


def _size(options: Any) -> dict[str, Any]:
    """The size of the images that --image-size or --scales names, in the place of the bundle's.

    Raises:
        ValueError: both are given.
    """
    if not options.scales:
        return {} if options.image_size is None else {"image_size": options.image_size}
    if options.image_size is not None:
        raise ValueError("evaluate: --image-size and --scales both name the size of the images: give one of them")
    resize, image_size = scale_of(options.scales[0])
    return {"image_size": image_size, "resize": resize}


def _load_model(options: Any) -> Predictor:
    """The model in its dtype; fp8 needs a graph."""
    predictor = _predictor(options, options.model, backend=options.backend)
    if options.dtype == "fp8" and not predictor.has_graph:
        kind = "interaction=False" if isinstance(predictor.model, SSGRL) else f"a {type(predictor.model).__name__}"
        raise ValueError(f"--dtype fp8 needs a --model with a graph, SSGRL's, got {kind} in {options.model}")
    return predictor.to_dtype(options.dtype)


def _load_baseline(options: Any) -> str | Predictor | None:
    """The file of a report as it is; a bundle as a predictor, without --backend: it may have no head to choose one, and
    in bfloat16 where fp8 needs the graph that it has not."""
    if options.baseline is None or Path(options.baseline).is_file():
        path: str | None = options.baseline
        return path
    predictor = _predictor(options, options.baseline)
    return predictor.to_dtype("bfloat16" if options.dtype == "fp8" and not predictor.has_graph else options.dtype)


def _predictor(options: Any, bundle: str, **others: Any) -> Predictor:
    where: dict[str, Any] = {"device": options.device, "runtime": options.runtime}
    return Predictor.load(bundle, **_size(options), **where, calibration=calibration_images(options), **others)


def _data(section: Any, class_names: Sequence[str]) -> MultiLabelDataModule:
    """The data module; its classes are in the model's order unless the options name them."""
    from ssgrl_fast.data.datamodule import MultiLabelDataModule

    settings = dict(section)
    if settings["classes"] is None and settings["kind"] != "digits":
        settings["classes"] = list(class_names)
    data = MultiLabelDataModule(**settings)
    check_same_classes("evaluate: the model", class_names, "the data", data.class_names)
    return data


def _protocol(options: Any, predictor: Predictor) -> Protocol:
    own = ((predictor.resize, predictor.image_size),)
    scales = own if not options.scales else tuple(scale_of(side) for side in options.scales)
    return Protocol(options.views, scales, options.fuse)


def _attention(
    predictor: Predictor, data: MultiLabelDataModule, protocol: Protocol, count: int, rows: Sequence[int] | None = None
) -> Callable[[], Figure] | None:
    """What draws the attention sheet; None for no rows and for a model without attention."""
    images = data.test_dataset
    if not count or images is None or not isinstance(predictor.model, SSGRL):
        return None
    return lambda: attention_sheet(
        attention_samples(predictor, images, protocol.scales[0], count, rows=rows), predictor.class_names
    )


def _difficult_rule(predictor: Predictor) -> str:
    """The rule that goes with the model's mode; "ignore" for a model without modes."""
    return MODE_DEFAULTS[predictor.mode]["difficult"] if predictor.mode in MODE_DEFAULTS else "ignore"
