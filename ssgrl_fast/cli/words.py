"""The verb ``words``: make or inspect the word vectors of class names."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from ssgrl_fast.labels import origin, words
from ssgrl_fast.labels.class_names import read_class_names


def add_words_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``words``."""
    parser.add_argument("source", help=f"a text file of vectors, an .npy, or {' or '.join(words.PACKAGES)}")
    names = parser.add_mutually_exclusive_group(required=True)
    names.add_argument(
        "--class-names", metavar="FILE", help="names, one a line, as a JSON list, in COCO annotations or a saved graph"
    )
    names.add_argument("--names", nargs="+", metavar="NAME", help="the class names themselves")
    parser.add_argument(
        "--compound",
        action="append",
        default=[],
        metavar="WORD=A+B",
        help="the words to average where WORD is unknown; may be given several times",
    )
    parser.add_argument("--out", metavar="FILE", help="where to save, .npy; the names go beside it")


def run_words(args: argparse.Namespace) -> int:
    """Find the vectors of class names, print how each was found and save them.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: as :func:`ssgrl_fast.labels.words.load`, or a broken
            --compound.
    """
    names = args.names or read_class_names(args.class_names)
    found = words.lookup(args.source, names, compounds={**words.COMPOUNDS, **dict(map(_compound, args.compound))})
    print(f"{found.source}: {len(names)} classes, {found.vectors.shape[1]} dimensions")
    width = max(map(len, names))
    for name, used, near in zip(names, found.used, _nearest(found.vectors, names), strict=True):
        print(f"  {name:{width}}  {' + '.join(used)}{near}")
    if args.out:
        target, sidecar = words.save(args.out, found.vectors, names, origin.read_words(args.source, found))
        made = words.origin_path(target).name
        print(f"saved to {target}, names in {sidecar.name}, how they were made in {made}")
    return 0


def _compound(text: str) -> tuple[str, tuple[str, ...]]:
    word, _, parts = text.partition("=")
    split = tuple(part.strip() for part in parts.split("+"))
    if not word.strip() or not all(split):
        raise ValueError(f"words: --compound must read WORD=A+B, got {text!r}")
    return word.strip(), split


def _nearest(vectors: Tensor, names: list[str]) -> list[str]:
    """For each class the other one whose vector points most nearly its way."""
    if len(names) < 2:
        return [""] * len(names)
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-torch.inf)
    best = cosine.max(1)
    return [f"  (nearest: {names[c]}, cosine {value:.2f})" for value, c in zip(*map(Tensor.tolist, best), strict=True)]
