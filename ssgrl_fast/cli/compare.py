"""The verb ``compare``: SSGRL against global pooling on cached features."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.files import write_json, write_text
from ssgrl_fast.metrics.report import defined
from ssgrl_fast.studies.comparison import compare
from ssgrl_fast.studies.comparison_settings import MODELS, Settings


def register(subparsers: Any) -> None:
    """Add the verb ``compare`` to an argparse subparser collection; it sets ``run``."""
    text = "SSGRL against global pooling on cached features: seeds, folds and a bootstrap interval"
    parser = subparsers.add_parser("compare", help=text, description=text)
    default = Settings(root="")
    parser.add_argument("--root", required=True, help="folder in Pascal VOC format, with a training and a test split")
    parser.add_argument("--features", default=default.features, help=f"where features are kept ({default.features})")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=default.models, help="which (all)")
    for name in ("backbone", "image_size", "words", "joint_dim", "batch_size", "seeds", "folds", "draws"):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"({value})")
    parser.add_argument("--mode", choices=("paper", "official"), default=default.mode, help="of SSGRL (paper)")
    parser.add_argument("--ap-definition", choices=("voc2010", "voc2007", "plain"), default=default.ap_definition)
    parser.add_argument("--backend", help="backend of the three operations (the fastest)")
    parser.add_argument("--epochs", type=int, help="so many, for a quick trial (each model's own)")
    parser.add_argument("--out", default="runs/compare", help="folder for report.md, .json, predictions (runs/compare)")
    parser.set_defaults(run=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """``compare``: print the table and write it.

    Raises:
        FileNotFoundError, ValueError: see :func:`compare` and :class:`Settings`.
    """
    given = {name: getattr(options, name) for name in Settings.__dataclass_fields__}
    out = Path(options.out)
    outcome = compare(Settings(**{**given, "models": tuple(options.models)}), keep=out)
    write_json(out / "report.json", defined(outcome.to_dict()))
    write_text(out / "report.md", outcome.markdown())
    print(f"\n{outcome.markdown()}\nreport in {out / 'report.md'} and .json, logits in {out / 'predictions.npz'}")
    return 0
