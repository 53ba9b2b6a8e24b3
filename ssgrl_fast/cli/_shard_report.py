"""``evaluate --predictions``: the report of predictions that were written before.

ssgrl-fast evaluate --predictions labels/ --labels test-annotations-human-imagelabels.csv
    --descriptions oidv7-class-descriptions.csv --output report
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssgrl_fast._utils.files import write_text
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.inference.shard_metrics import evaluate_shards
from ssgrl_fast.labels.matrix import DIFFICULT_RULES
from ssgrl_fast.metrics import AP_DEFINITIONS

__all__ = ["is_asked_for", "main"]


def is_asked_for(argv: Sequence[str]) -> bool:
    """Whether a command line of ``evaluate`` names predictions."""
    return any(word.partition("=")[0] == "--predictions" for word in argv)


def main(argv: Sequence[str]) -> int:
    """Print the report, and write report.json and report.md.

    Raises:
        FileExistsError: the folder already has a report, without --overwrite.
        ValueError, FileNotFoundError: see :func:`~ssgrl_fast.inference.shard_metrics.evaluate_shards`.
    """
    options = _parser().parse_args(argv)
    folder = Path(options.output)
    if (folder / "report.json").exists() and not options.overwrite:
        raise FileExistsError(f"{folder} holds a report.json: name another --output or give --overwrite")
    report = evaluate_shards(
        options.predictions,
        options.labels,
        descriptions=options.descriptions,
        split=options.split,
        ap_definition=options.ap_definition,
        difficult=options.difficult,
        threshold=options.threshold,
    )
    text = report.to_markdown()
    report.to_json(folder / "report.json")
    write_text(folder / "report.md", text)
    say(f"{text}report in {folder}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ssgrl-fast evaluate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--predictions", required=True, metavar="SHARDS", help="folder or address of shards, or one .parquet of predict"
    )
    add(
        "--labels",
        required=True,
        metavar="TABLE",
        help="labels: CSV or Parquet with a row per label, or CSV with a row per image",
    )
    add("--descriptions", metavar="TABLE", help="Open Images' table of label names and display names")
    add("--split", help="use the rows of this split; for a table with a row per image")
    add("--output", required=True, metavar="FOLDER", help="folder of the report")
    add("--ap-definition", default="voc2010", choices=AP_DEFINITIONS, help="AP definition (voc2010)")
    add("--difficult", choices=DIFFICULT_RULES, help="rule for difficult objects (ignore, where a label is -1)")
    add("--threshold", type=float, default=0.5, help="probability above which a label is predicted (0.5)")
    add("--overwrite", action="store_true", help="replace an earlier report in the folder")
    return parser
