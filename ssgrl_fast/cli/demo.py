"""The verb ``demo``: SSGRL and its baseline trained on the embedded digits, and this machine measured.

ssgrl-fast demo --minutes 4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssgrl_fast._utils.checks import need
from ssgrl_fast.cli._options import verb_parser


def main(argv: Sequence[str]) -> int:
    """Run ``demo``: print the table and write it with pictures and models; see :mod:`ssgrl_fast.studies.demo`.

    Raises:
        ValueError: an option that is not positive.
        ImportError: the extra "train" is not installed.
    """
    options = _parser().parse_args(argv)
    for name in ("minutes", "epochs", "canvases", "head_images"):
        if getattr(options, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, got {getattr(options, name)}")
    need("lightning", "train", "the demonstration")
    from ssgrl_fast.studies.demo import demonstration

    demonstration.run(
        Path(options.out),
        minutes=options.minutes,
        epochs=options.epochs,
        canvases=options.canvases,
        seed=options.seed,
        head_images=options.head_images,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("demo")
    add = parser.add_argument
    add("--out", default="runs/demo", help="folder for pictures, report and models (runs/demo)")
    add(
        "--minutes",
        type=float,
        default=8.0,
        help="limit for training both models together, minutes; fewer epochs are trained if needed (8)",
    )
    add("--epochs", type=int, default=7, help="epochs of each model (7)")
    add("--canvases", type=int, default=6000, help="number of training canvases (6000)")
    add("--seed", type=int, default=0, help="seed of the initial weights and of the order (0)")
    add("--head-images", type=int, default=1, help="batch size B of the measured head (1)")
    return parser
