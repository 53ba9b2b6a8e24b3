"""The verbs ``graph`` and ``words``: make a co-occurrence graph or the vectors of class names, or look at one.

ssgrl-fast graph --voc VOCdevkit/VOC2007 --split trainval --out voc2007.safetensors
ssgrl-fast graph --labels labels.npz --class-names classes.json --out graph.npz
ssgrl-fast graph --inspect voc2007.safetensors
ssgrl-fast words glove-6b-50d --class-names classes.json --out vectors.npy
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from . import graph, words
from .graph_forms import object_cooccurrence, reweight, threshold
from .labels import DIFFICULT_RULES, check_class_names, check_labels, read_class_names, split_labels

_SHOWN = 10


def register(subparsers: Any) -> None:
    """Add the verbs ``graph`` and ``words`` to an argparse subparser collection; each sets ``run``."""
    for name, text, add, run in (
        ("graph", "make or inspect a co-occurrence graph P(c' | c)", add_graph_arguments, run_graph),
        ("words", "make or inspect the word vectors of class names", add_words_arguments, run_words),
    ):
        parser = subparsers.add_parser(name, help=text, description=text)
        add(parser)
        parser.set_defaults(run=run)


def add_graph_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``graph``."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--voc", metavar="FOLDER", help="a folder in Pascal VOC format (Annotations, ImageSets)")
    source.add_argument("--coco", metavar="JSON", help="annotations in COCO format")
    source.add_argument(
        "--labels",
        metavar="FILE",
        help=".npz with 'labels' [M, C], .npy, or .csv with files and their labels or a column a class",
    )
    source.add_argument("--inspect", metavar="GRAPH", help="print what a saved graph holds")
    parser.add_argument("--split", help="list or sub-folder of --voc (trainval, or train)")
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="what to do about broken entries of --voc (raise)",
    )
    parser.add_argument(
        "--class-names", metavar="FILE", help="names, one a line or a JSON list; needed where the labels have none"
    )
    parser.add_argument(
        "--level",
        choices=("image", "object"),
        default="image",
        help="count images, or with --voc pairs of objects as the authors' VOC graphs do (image; D6)",
    )
    parser.add_argument("--threshold", type=float, metavar="TAU", help="1 where A >= TAU, else 0 (ML-GCN, eq. 7)")
    parser.add_argument(
        "--reweight", type=float, metavar="P", help="rows share P, the class keeps 1 - P (ML-GCN, eq. 8)"
    )
    parser.add_argument("--diagonal", type=float, default=0.0, help="A[c, c] (0; D6)")
    parser.add_argument("--difficult", choices=DIFFICULT_RULES, help="rule for difficult objects (not counted)")
    parser.add_argument("--out", metavar="FILE", help="where to save, .safetensors or .npz")


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


def run_graph(args: argparse.Namespace) -> int:
    """Count a graph from labels, print a summary and save it; or print the summary of a saved one.

    Raises:
        FileNotFoundError, ValueError: the input is absent or broken (named), or options that do not fit together.
    """
    if args.inspect:
        if args.out:
            raise ValueError("graph: --out goes with --voc, --coco or --labels, not with --inspect")
        saved = graph.read(args.inspect)
        names = saved.class_names or [str(c) for c in range(len(saved.adjacency))]
        print(f"{args.inspect}: {len(names)} classes{'' if saved.class_names else ', no names in the file'}")
        for name, value in saved.details.items():
            print(f"  {name}: {value}")
        _print_graph(saved.adjacency, names)
        return 0
    labels, names, source = _read_labels(args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", graph.ClassesWithoutPositives)  # printed below, by name
        adjacency = graph.cooccurrence(labels, diagonal=args.diagonal, difficult=args.difficult)
    if args.level == "object":
        adjacency = object_cooccurrence(_objects(args, names), diagonal=args.diagonal)
    if args.threshold is not None:
        adjacency = threshold(adjacency, args.threshold)
    if args.reweight is not None:
        adjacency = reweight(adjacency, args.reweight)
    sets = split_labels("graph", "labels", labels, args.difficult)
    details = {
        "source": source,
        "images": str(len(labels)),
        "diagonal": f"{args.diagonal:g}",
        "level": args.level,
        "threshold": "none" if args.threshold is None else f"{args.threshold:g}",
        "reweight": "none" if args.reweight is None else f"{args.reweight:g}",
        "difficult": f"{sets.rule} ({int(sets.difficult.sum())} entries)",
    }
    print(f"{source}: {len(labels)} images, {len(names)} classes")
    for name in ("level", "diagonal", "threshold", "reweight", "difficult"):
        print(f"  {name}: {details[name]}")
    _print_positives(sets.present.sum(0).tolist(), names)
    _print_graph(adjacency, names)
    if args.out:
        print(f"saved to {graph.save(args.out, adjacency, names, details)}")
    return 0


def run_words(args: argparse.Namespace) -> int:
    """Find the vectors of class names, print how each was found and save them.

    Raises:
        FileNotFoundError, ImportError, TypeError, ValueError: as :func:`ssgrl_fast.words.load`, or a broken --compound.
    """
    names = args.names or read_class_names(args.class_names)
    found = words.lookup(args.source, names, compounds={**words.COMPOUNDS, **dict(map(_compound, args.compound))})
    print(f"{found.source}: {len(names)} classes, {found.vectors.shape[1]} dimensions")
    width = max(map(len, names))
    for name, used, near in zip(names, found.used, _nearest(found.vectors, names), strict=True):
        print(f"  {name:{width}}  {' + '.join(used)}{near}")
    if args.out:
        target, sidecar = words.save(args.out, found.vectors, names)
        print(f"saved to {target}, names in {sidecar.name}")
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


def _print_positives(totals: list[int], names: list[str]) -> None:
    ranked = sorted(zip(totals, names, strict=True), reverse=True)
    print(f"  images of a class: {ranked[-1][0]} ({ranked[-1][1]}) to {ranked[0][0]} ({ranked[0][1]})")
    empty = [name for total, name in zip(totals, names, strict=True) if not total]
    if empty:
        print(f"  {len(empty)} classes have no image that holds them, their rows are zero: {', '.join(empty)}")


def _print_graph(adjacency: Tensor, names: list[str]) -> None:
    between = adjacency.clone().fill_diagonal_(0.0)
    pairs = len(names) * (len(names) - 1)
    edges = int((between > 0).sum())
    share = f" ({100 * edges / pairs:.1f} %)" if pairs else ""
    print(f"  edges: {edges} of {pairs}{share}, values to {adjacency.max():.3g}")
    strongest = between.flatten().sort(descending=True, stable=True).indices[: min(_SHOWN, edges)]
    for place in strongest.tolist():
        row, column = divmod(place, len(names))
        print(f"  P({names[column]} | {names[row]}) = {adjacency[row, column]:.3f}")


# ---- labels ----------------------------------------------------------------------------------------------------------


def _read_labels(args: argparse.Namespace) -> tuple[Tensor, list[str], str]:
    """Labels [M, C], class names, and what they were read from."""
    given = read_class_names(args.class_names) if args.class_names else None
    if args.labels:
        labels, own = _label_file(Path(args.labels))
        names = given or own
        if names is None:
            raise ValueError(f"graph: {args.labels} holds no class names: give --class-names FILE")
        return labels, check_class_names("graph", names, labels.shape[1]), args.labels
    if args.coco:
        from .data.coco import read_labels

        labels, names, _ = read_labels(args.coco, classes=given)
        return labels, names, args.coco
    from .data.voc import PascalVOC, default_splits

    split = args.split or default_splits(args.voc)[0]
    images = PascalVOC(args.voc, split, classes=given, on_error=args.on_error)
    return images.labels, images.class_names, f"{args.voc} ({split})" if split else args.voc


def _objects(args: argparse.Namespace, names: list[str]) -> Tensor:
    """Objects a class and image, [M, C], of --voc."""
    if not args.voc or args.difficult not in (None, "ignore", "negative"):
        raise ValueError("graph: --level object counts the objects of --voc that are not difficult, and takes no other")
    from .data.voc import count_objects, default_splits

    return count_objects(args.voc, args.split or default_splits(args.voc)[0], names)


def _label_file(path: Path) -> tuple[Tensor, list[str] | None]:
    readers: dict[str, Callable[[Path], tuple[Any, list[str] | None]]] = {
        ".npz": _npz_labels,
        ".npy": lambda file: (np.load(file, allow_pickle=False), None),
        ".csv": _csv_labels,
    }
    if not path.is_file():
        raise FileNotFoundError(f"graph: {path} is no file")
    if path.suffix not in readers:
        raise ValueError(f"graph: {path} must end in {', '.join(readers)}, got {path.suffix!r}")
    try:
        labels, names = readers[path.suffix](path)
        return check_labels("graph", "labels", labels), names
    except (BadZipFile, ValueError, TypeError, EOFError, OSError) as error:
        raise ValueError(f"graph: {path} cannot be read as labels: {error}") from error


def _npz_labels(path: Path) -> tuple[np.ndarray, list[str] | None]:
    with np.load(path, allow_pickle=False) as arrays:
        if "labels" not in arrays.files:
            raise ValueError(f"it holds {', '.join(arrays.files)}, expected labels")
        names = [str(name) for name in arrays["class_names"]] if "class_names" in arrays.files else None
        return arrays["labels"], names


def _csv_labels(path: Path) -> tuple[np.ndarray, list[str]]:
    from .data.table import read_table

    table = read_table(path)
    return table.labels.numpy(), table.class_names
