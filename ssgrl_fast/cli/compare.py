"""The verb ``compare``: SSGRL against global pooling on cached features.

ssgrl-fast compare --root data/playing_cards
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ssgrl_fast._utils.files import write_json, write_text
from ssgrl_fast.cli._options import verb_parser
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.metrics import AP_DEFINITIONS
from ssgrl_fast.metrics.report import defined
from ssgrl_fast.studies.comparison import compare
from ssgrl_fast.studies.comparison_settings import MODELS, Settings

_VALUES = {  # options that take one value, with the line of help each
    "backbone": "frozen network whose features are compared",
    "image_size": "side of its square input, pixels",
    "words": "word vectors of the class names, a package or a file",
    "joint_dim": "K, width of semantic attention's joint space",
    "batch_size": "images per training batch",
    "seeds": "training runs per model, seeds 0, 1, ...",
    "search_seeds": "training runs over which the score of a learning rate and number of epochs is averaged",
    "folds": "folds of the cross-validation over all images",
    "draws": "draws of the bootstrap",
}


def main(argv: Sequence[str]) -> int:
    """Run ``compare``: print the table and write the report.

    Raises:
        FileNotFoundError, ValueError: see :func:`compare` and :class:`Settings`.
    """
    options = _parser().parse_args(argv)
    values = {field.name: getattr(options, field.name) for field in fields(Settings)}
    settings = Settings(**{**values, "models": tuple(options.models)})
    out = Path(options.out)
    outcome = compare(settings, keep=out)
    write_json(out / "report.json", defined(outcome.to_dict()))
    write_text(out / "report.md", outcome.markdown())
    say(f"\n{outcome.markdown()}\nreport in {out / 'report.md'} and .json, logits in {out / 'predictions.npz'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser, default = verb_parser("compare"), Settings(root="")
    parser.add_argument("--root", required=True, help="folder in Pascal VOC format with a training and a test split")
    parser.add_argument(
        "--features", default=default.features, help=f"folder of the cached features ({default.features})"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=tuple(MODELS),
        default=default.models,
        help=f"models to compare; no-sd and no-sd-concat are the other rows of Table 5 ({' '.join(default.models)})",
    )
    parser.add_argument(
        "--against",
        choices=tuple(MODELS),
        default=default.against,
        help=f"model that gaps are measured to ({default.against})",
    )
    for name, text in _VALUES.items():
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"{text} ({value})")
    parser.add_argument("--mode", choices=("paper", "official"), default=default.mode, help="mode of SSGRL (paper)")
    parser.add_argument(
        "--ap-definition",
        choices=AP_DEFINITIONS,
        default=default.ap_definition,
        help=f"definition of average precision ({default.ap_definition})",
    )
    parser.add_argument("--backend", help="backend of the three operations (the fastest)")
    parser.add_argument(
        "--epochs", type=int, help="number of epochs of every model (overrides each model's own candidates)"
    )
    parser.add_argument("--out", default="runs/compare", help="folder for report.md, .json, predictions (runs/compare)")
    return parser
