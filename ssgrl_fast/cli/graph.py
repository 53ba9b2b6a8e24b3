"""The verbs ``graph`` and ``words``: make a co-occurrence graph or the vectors of class names, or look at one.

ssgrl-fast graph --voc VOCdevkit/VOC2007 --split trainval --out voc2007.safetensors
ssgrl-fast graph --labels labels.npz --class-names classes.json --out graph.npz
ssgrl-fast graph --counts coco_adj.json --order official_names.json --out coco.safetensors
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

from ssgrl_fast.cli.words import add_words_arguments, run_words
from ssgrl_fast.labels import graph, origin
from ssgrl_fast.labels.class_names import read_class_names
from ssgrl_fast.labels.graph_forms import object_cooccurrence, read_counts, reorder, reweight, threshold
from ssgrl_fast.labels.matrix import DIFFICULT_RULES, check_class_names, check_labels, split_labels

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
    source.add_argument(
        "--counts",
        metavar="FILE",
        help="published counts: .json with adj, nums and classes as ML-GCN's, or .npz with pairs, totals, class_names",
    )
    source.add_argument("--inspect", metavar="GRAPH", help="print what a saved graph holds")
    parser.add_argument(
        "--split",
        help="of --voc: list or sub-folder (trainval, or train); of a .csv its words, in any letters (those that mean "
        "training)",
    )
    parser.add_argument("--separator", help="of a .csv: between the labels of a field (; | or , whichever occurs)")
    parser.add_argument(
        "--coding",
        help="of a .csv with class columns: what 1, 0, -1 and empty mean: zero-one, voc, chexpert, partial, …",
    )
    parser.add_argument("--negative-word", help="of a .csv: the label or column that says that there is none")
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
        "--order", metavar="FILE", help="the same class names in the order to save them in (COCO has two, D8)"
    )
    parser.add_argument(
        "--level",
        choices=("image", "object"),
        default="image",
        help="count images, or with --voc or --coco pairs of objects as the authors' VOC graphs do (image; D6)",
    )
    parser.add_argument("--threshold", type=float, metavar="TAU", help="1 where A >= TAU, else 0 (ML-GCN, eq. 7)")
    parser.add_argument(
        "--reweight", type=float, metavar="P", help="rows share P, the class keeps 1 - P (ML-GCN, eq. 8)"
    )
    parser.add_argument("--diagonal", type=float, default=0.0, help="A[c, c] (0; D6)")
    parser.add_argument("--difficult", choices=DIFFICULT_RULES, help="rule for difficult objects (not counted)")
    parser.add_argument("--out", metavar="FILE", help="where to save, .safetensors or .npz")


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
    adjacency, totals, names, details = _from_counts(args) if args.counts else _from_labels(args)
    if args.threshold is not None:
        adjacency = threshold(adjacency, args.threshold)
    if args.reweight is not None:
        adjacency = reweight(adjacency, args.reweight)
    if args.order:
        order = reorder(names, read_class_names(args.order), args.order)
        adjacency, totals, names = adjacency[order][:, order], totals[order], [names[column] for column in order]
    details |= {
        "class names sha256": origin.names_sha256(names),
        "graph sha256": origin.matrix_sha256(adjacency),
        "diagonal": f"{args.diagonal:g}",
        "level": args.level,
        "threshold": "none" if args.threshold is None else f"{args.threshold:g}",
        "reweight": "none" if args.reweight is None else f"{args.reweight:g}",
    }
    print(f"{details['source']}: {details['images']} images, {len(names)} classes")
    for name in ("level", "diagonal", "threshold", "reweight", "difficult"):
        print(f"  {name}: {details[name]}")
    _print_positives(totals.tolist(), names)
    _print_graph(adjacency, names)
    if args.out:
        print(f"saved to {graph.save(args.out, adjacency, names, details)}")
    return 0


def _from_labels(args: argparse.Namespace) -> tuple[Tensor, Tensor, list[str], dict[str, str]]:
    """Adjacency, images of each class, class names and details of a graph counted here."""
    labels, names, source, ids = _read_labels(args)
    sets = split_labels("graph", "labels", labels, args.difficult)
    images = origin.images_record(source, labels, ids)
    details = {
        "source": source,
        "images": str(images["count"]),
        "list of images sha256": images["ids_sha256"],
        "labels sha256": images["labels_sha256"],
        "difficult": f"{sets.rule} ({int(sets.difficult.sum())} entries)",
    }
    if args.level == "object":
        adjacency = object_cooccurrence(_objects(args, names), diagonal=args.diagonal)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", graph.ClassesWithoutPositives)  # printed later, by name
            adjacency = graph.cooccurrence(labels, diagonal=args.diagonal, difficult=args.difficult)
    return adjacency, sets.present.sum(0), names, details


def _from_counts(args: argparse.Namespace) -> tuple[Tensor, Tensor, list[str], dict[str, str]]:
    """The same of published counts."""
    refused = [name for name in ("split", "difficult") if getattr(args, name)]
    if refused or args.level != "image":
        raise ValueError(f"graph: --counts are given, and take no --{(refused or ['level'])[0]}")
    pairs, totals, own = read_counts(args.counts)
    names = read_class_names(args.class_names) if args.class_names else own
    if names is None:
        raise ValueError(f"graph: {args.counts} holds no class names: give --class-names FILE")
    check_class_names("graph", names, len(totals))
    adjacency = graph.conditional_probability(pairs, totals, diagonal=args.diagonal).to(torch.float32)
    return (
        adjacency,
        totals,
        names,
        {
            "source": args.counts,
            "counts sha256": origin.file_record(args.counts)["sha256"],
            "images": origin.UNSTATED,
            "difficult": "as counted",
        },
    )


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


def _read_labels(args: argparse.Namespace) -> tuple[Tensor, list[str], str, list[str] | None]:
    """Labels [M, C], class names, what they were read from, and the M images' names where they have any."""
    given = read_class_names(args.class_names) if args.class_names else None
    if args.labels:
        labels, own, split, ids = _label_file(Path(args.labels), args)
        names = given or own
        if names is None:
            raise ValueError(f"graph: {args.labels} holds no class names: give --class-names FILE")
        source = f"{args.labels} ({split})" if split else args.labels
        return labels, check_class_names("graph", names, labels.shape[1]), source, ids
    if args.coco:
        from ssgrl_fast.data.coco import read_labels

        labels, names, files = read_labels(args.coco, classes=given)
        return labels, names, args.coco, files
    from ssgrl_fast.data.voc import PascalVOC, default_splits

    split = args.split or default_splits(args.voc)[0]
    images = PascalVOC(args.voc, split, classes=given, on_error=args.on_error)
    return images.labels, images.class_names, f"{args.voc} ({split})" if split else args.voc, images.ids


def _objects(args: argparse.Namespace, names: list[str]) -> Tensor:
    """Objects a class and image, [M, C], of --voc or --coco."""
    if args.labels or args.difficult not in (None, "ignore", "negative"):
        raise ValueError(
            "graph: --level object counts the objects of --voc or --coco that are not difficult, and takes no other"
        )
    if args.coco:
        from ssgrl_fast.data.coco import count_objects as count_coco

        return count_coco(args.coco, classes=names)
    from ssgrl_fast.data.voc import count_objects, default_splits

    return count_objects(args.voc, args.split or default_splits(args.voc)[0], names)


def _label_file(path: Path, args: argparse.Namespace) -> tuple[Tensor, list[str] | None, str | None, list[str] | None]:
    """Labels, the class names where the file has them, the split where it has several, and the images' names."""
    split = args.split
    if not path.is_file():
        raise FileNotFoundError(f"graph: {path} is no file")
    if path.suffix == ".csv":
        return _csv_labels(path, args)
    readers: dict[str, Callable[[Path], tuple[Any, list[str] | None]]] = {
        ".npz": _npz_labels,
        ".npy": lambda file: (np.load(file, allow_pickle=False), None),
    }
    if path.suffix not in readers:
        raise ValueError(f"graph: {path} must end in .npz, .npy, .csv, got {path.suffix!r}")
    if split is not None:
        raise ValueError(f"graph: {path} holds no splits, got --split {split}")
    if form := [name for name in ("separator", "coding", "negative_word") if getattr(args, name) is not None]:
        raise ValueError(f"graph: --{form[0].replace('_', '-')} is for .csv, got {path}")
    try:
        labels, names = readers[path.suffix](path)
        return check_labels("graph", "labels", labels), names, None, None
    except (BadZipFile, ValueError, TypeError, EOFError, OSError) as error:
        raise ValueError(f"graph: {path} cannot be read as labels: {error}") from error


def _npz_labels(path: Path) -> tuple[np.ndarray, list[str] | None]:
    with np.load(path, allow_pickle=False) as arrays:
        if "labels" not in arrays.files:
            raise ValueError(f"it holds {', '.join(arrays.files)}, expected labels")
        names = [str(name) for name in arrays["class_names"]] if "class_names" in arrays.files else None
        return arrays["labels"], names


def _csv_labels(path: Path, args: argparse.Namespace) -> tuple[Tensor, list[str], str | None, list[str]]:
    """The rows of a split; those for training where none is named, for a graph is counted on training images alone
    (section 3.3)."""
    from ssgrl_fast.data.table import TableFormat, default_splits, read_table

    split = args.split or default_splits(path)[0]
    form = TableFormat(separator=args.separator, coding=args.coding, negative_word=args.negative_word)
    table = read_table(path, form=form)
    rows = table.rows_of(split)
    return table.labels[rows], table.class_names, split, [table.files[row] for row in rows]
