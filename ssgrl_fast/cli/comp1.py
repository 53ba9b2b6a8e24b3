"""The verb ``comp1``: predictions as the files of the Pascal VOC evaluation server.

ssgrl-fast comp1 predictions.json --out results/VOC2012/Main
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssgrl_fast.cli._options import verb_parser
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.data.voc import read_list
from ssgrl_fast.inference.comp1 import read_predictions, write_comp1


def main(argv: Sequence[str]) -> int:
    """Run ``comp1``: write the files and print how many images they cover.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_predictions`, :func:`~ssgrl_fast.data.voc.read_list` and
            :func:`write_comp1`; or a listed image without scores.
    """
    options = _parser().parse_args(argv)
    class_names, scores = read_predictions(options.predictions)
    if options.images:
        listed = read_list(Path(options.images), known=scores.__contains__)
        if absent := [name for name in listed if name not in scores]:
            raise ValueError(
                f"{options.predictions}: {len(absent)} of {len(listed)} listed images have no scores, {absent[0]} first"
            )
        scores = {name: scores[name] for name in listed}
    written = write_comp1(options.out, class_names, scores, split=options.split)
    say(f"{options.out}: {len(written)} files of {len(scores)} images")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("comp1")
    add = parser.add_argument
    add("predictions", help="JSON file of `ssgrl-fast predict`, with the scores of every class")
    add("--images", metavar="FILE", help="write only these image ids, one per line (ImageSets/Main/test.txt)")
    add("--split", default="test", help="name of the image set, part of the file names (test)")
    add("--out", metavar="FOLDER", required=True, help="folder to write the files to")
    return parser
