"""The verb ``words``: make or inspect the word vectors of class names.

ssgrl-fast words glove-6b-50d --class-names classes.json --out vectors.npy
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from ssgrl_fast._utils.escape import for_terminal
from ssgrl_fast.cli._options import add_compound_option, compounds_of, verb_parser
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.labels import origin, words
from ssgrl_fast.labels.class_names import read_class_names


def main(argv: Sequence[str]) -> int:
    """Run ``words``: print from which words each class's vector was made, and save the vectors.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: as :func:`ssgrl_fast.labels.words.load`, or a broken
            --compound.
    """
    options = _parser().parse_args(argv)
    names = options.names or read_class_names(options.class_names)
    result = words.lookup(options.source, names, compounds=compounds_of(options))
    say(f"{result.source}: {len(names)} classes, {result.vectors.shape[1]} dimensions")
    shown = [*map(for_terminal, names)]
    width = max(map(len, shown))
    for name, used, nearest in zip(shown, result.used, _nearest(result.vectors, names), strict=True):
        say(f"  {name:{width}}  {' + '.join(used)}{nearest}")
    if options.out:
        path, names_path = words.save(options.out, result.vectors, names, origin.read_words(options.source, result))
        origin_name = words.origin_path(path).name
        say(f"saved to {path}, names in {names_path.name}, how they were made in {origin_name}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("words")
    parser.add_argument(
        "source", help=f"source of the vectors: a text file, an .npy, or a package: {' or '.join(words.PACKAGES)}"
    )
    names = parser.add_mutually_exclusive_group(required=True)
    names.add_argument(
        "--class-names",
        metavar="FILE",
        help="class names, one per line, as a JSON list, in COCO annotations or in a saved graph",
    )
    names.add_argument("--names", nargs="+", metavar="NAME", help="the class names themselves")
    add_compound_option(parser)
    parser.add_argument("--out", metavar="FILE", help="file to save, .npy; the names are saved beside it")
    return parser


def _nearest(vectors: Tensor, names: list[str]) -> list[str]:
    """For each class, the other class whose vector has the highest cosine with its own, as text."""
    if len(names) < 2:
        return [""] * len(names)
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-torch.inf)
    best = cosine.max(1)
    return [f"  (nearest: {names[c]}, cosine {value:.2f})" for value, c in zip(*map(Tensor.tolist, best), strict=True)]
