"""The verb ``graph``: make or inspect a co-occurrence graph.

ssgrl-fast graph --voc VOCdevkit/VOC2007 --split trainval --out voc2007.safetensors
ssgrl-fast graph --labels labels.npz --class-names classes.json --out graph.npz
ssgrl-fast graph --counts coco_adj.json --order official_names.json --out coco.safetensors
ssgrl-fast graph --inspect voc2007.safetensors
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ssgrl_fast._utils.escape import for_terminal
from ssgrl_fast.cli._options import verb_parser
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.data import label_source
from ssgrl_fast.data.table_format import TableFormat
from ssgrl_fast.labels import graph, origin
from ssgrl_fast.labels.class_names import read_class_names
from ssgrl_fast.labels.graph_forms import object_cooccurrence, read_counts, reorder, reweight, threshold
from ssgrl_fast.labels.matrix import DIFFICULT_RULES, check_class_names, split_labels

_STRONGEST = 10  # edges that a summary lists


@dataclass(frozen=True)
class _Counted:
    """A graph before its further options: A [C, C], images of each class [C], C names, and how it was counted."""

    adjacency: Tensor
    totals: Tensor
    names: list[str]
    details: dict[str, str]


def main(argv: Sequence[str]) -> int:
    """Run ``graph``: count a graph from labels, print a summary and save it; or print the summary of a saved one.

    Raises:
        FileNotFoundError, ValueError: the input is absent or broken (named), or options that do not fit together.
    """
    options = _parser().parse_args(argv)
    if options.inspect:
        return _inspect(options)
    counted = _from_counts(options) if options.counts else _from_labels(options)
    adjacency, totals, names = counted.adjacency, counted.totals, counted.names
    # the forms of ML-GCN, then the order of the classes
    if options.threshold is not None:
        adjacency = threshold(adjacency, options.threshold)
    if options.reweight is not None:
        adjacency = reweight(adjacency, options.reweight)
    if options.order:
        order = reorder(names, read_class_names(options.order), options.order)
        adjacency, totals, names = adjacency[order][:, order], totals[order], [names[column] for column in order]
    details = {
        **counted.details,
        "class names sha256": origin.names_sha256(names),
        "graph sha256": origin.matrix_sha256(adjacency),
        "diagonal": f"{options.diagonal:g}",
        "level": options.level,
        "threshold": "none" if options.threshold is None else f"{options.threshold:g}",
        "reweight": "none" if options.reweight is None else f"{options.reweight:g}",
    }
    # the summary
    say(f"{details['source']}: {details['images']} images, {len(names)} classes")
    for name in ("level", "diagonal", "threshold", "reweight", "difficult", "unknown"):
        if name in details:
            say(f"  {name}: {details[name]}")
    _print_positives(totals.tolist(), names)
    _print_graph(adjacency, names)
    if options.out:
        say(f"saved to {graph.save(options.out, adjacency, names, details)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("graph")
    add = parser.add_argument
    parser.epilog = f"{parser.epilog} Codes such as D6 are explained in docs/glossary.md."
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--voc", metavar="FOLDER", help="a folder in Pascal VOC format (Annotations, ImageSets)")
    source.add_argument("--coco", metavar="JSON", help="annotations in COCO format")
    source.add_argument(
        "--labels",
        metavar="FILE",
        help=".npz with 'labels' [M, C], .npy, or a .csv or .parquet table of files with labels or a column per class",
    )
    source.add_argument(
        "--counts",
        metavar="FILE",
        help="published counts: .json with adj, nums and classes as ML-GCN's, or .npz with pairs, totals, class_names",
    )
    source.add_argument("--inspect", metavar="GRAPH", help="print a summary of a saved graph")
    add(
        "--split",
        help="of --voc: list or sub-folder (trainval, or train); of a table a word of its splits (those for training)",
    )
    add("--separator", help="of a table: what separates the labels of an image (; | or , by the table)")
    add(
        "--coding",
        help="of a table with a column per class and of per-class lists: meaning of 1, 0, -1, empty: zero-one, voc, …",
    )
    add("--negative-word", help="of a table: the label or column that says that there is no label")
    add("--image-column", help="of a table: the column of the files (file, filename, image_id …)")
    add("--label-column", help="of a table: the column of the labels (labels, tags, class …)")
    add("--split-column", help="of a table: the column of the splits, '' for none (split, set, fold …)")
    add(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="stop at broken entries of --voc, or skip them (raise)",
    )
    add("--allow-outside", action="store_true", help="of --voc: follow lists and symbolic links out of the folder")
    add(
        "--class-names",
        metavar="FILE",
        help="class names, one per line or a JSON list; needed where the labels have none",
    )
    add("--order", metavar="FILE", help="the same class names in the order to save them in (COCO has two, D8)")
    add(
        "--level",
        choices=("image", "object"),
        default="image",
        help="count images, or with --voc or --coco pairs of objects as the authors' VOC graphs do (image; D6)",
    )
    add("--threshold", type=float, metavar="TAU", help="1 where A >= TAU, else 0 (ML-GCN, eq. 7)")
    add(
        "--reweight",
        type=float,
        metavar="P",
        help="rescale each row: its neighbours share P, the class itself gets 1 - P (ML-GCN, eq. 8)",
    )
    add("--diagonal", type=float, default=0.0, help="value of A[c, c] (0; D6)")
    add("--difficult", choices=DIFFICULT_RULES, help="how classes with only difficult objects count (ignore; D27)")
    add("--out", metavar="FILE", help="file to save, .safetensors or .npz")
    return parser


def _inspect(options: argparse.Namespace) -> int:
    """Print what a saved graph holds."""
    if options.out:
        raise ValueError("--out goes with --voc, --coco, --labels or --counts, not with --inspect")
    saved = graph.read(options.inspect)
    names = saved.class_names or [str(c) for c in range(len(saved.adjacency))]
    say(f"{options.inspect}: {len(names)} classes{'' if saved.class_names else ', no names in the file'}")
    for name, value in saved.details.items():
        say(f"  {for_terminal(name)}: {for_terminal(value)}")
    _print_graph(saved.adjacency, names)
    return 0


def _from_labels(options: argparse.Namespace) -> _Counted:
    """Count the graph of --labels, --coco or --voc."""
    class_names = read_class_names(options.class_names) if options.class_names else None
    if options.labels:
        form = TableFormat(**{field.name: getattr(options, field.name) for field in fields(TableFormat)})
        source = label_source.read_file(options.labels, split=options.split, class_names=class_names, form=form)
    elif options.coco:
        source = label_source.read_coco(options.coco, class_names=class_names)
    else:
        source = label_source.read_voc(
            options.voc,
            split=options.split,
            class_names=class_names,
            on_error=options.on_error,
            coding=options.coding,
            allow_outside=options.allow_outside,
        )
    labels, names = source.labels, source.class_names
    sets = split_labels("graph", "labels", labels, options.difficult)
    if options.level == "object":
        adjacency = object_cooccurrence(_count_objects(options, names), diagonal=options.diagonal)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", graph.ClassesWithoutPositives)  # printed later, by name
            adjacency = graph.cooccurrence(labels, diagonal=options.diagonal, difficult=options.difficult)
    images = origin.images_record(source.source, labels, source.image_names)
    details = {
        "source": source.source,
        "images": str(images["count"]),
        "list of images sha256": images["ids_sha256"],
        "labels sha256": images["labels_sha256"],
        "difficult": f"{sets.rule} ({int(sets.difficult.sum())} entries)",
    }
    if unknown := int(sets.unknown.sum()):
        details["unknown"] = f"{unknown} entries, left out"
    return _Counted(adjacency, sets.present.sum(0), names, details)


def _from_counts(options: argparse.Namespace) -> _Counted:
    """The graph of --counts, which were made by somebody else."""
    refused = [name for name in ("split", "difficult") if getattr(options, name)]
    refused += ["level"] if options.level != "image" else []
    if refused:
        raise ValueError(f"--counts holds finished counts and takes no --{refused[0]}")
    pairs, totals, own_names = read_counts(options.counts)
    names = read_class_names(options.class_names) if options.class_names else own_names
    if names is None:
        raise ValueError(f"{options.counts} holds no class names: give --class-names FILE")
    check_class_names(options.counts, names, len(totals))
    adjacency = graph.conditional_probability(pairs, totals, diagonal=options.diagonal).to(torch.float32)
    details = {
        "source": options.counts,
        "counts sha256": origin.file_record(options.counts)["sha256"],
        "images": origin.UNSTATED,
        "difficult": "as counted",
    }
    return _Counted(adjacency, totals, names, details)


def _count_objects(options: argparse.Namespace, names: list[str]) -> Tensor:
    """Objects of each class in each image of --voc or --coco, [M, C]."""
    if options.labels or options.difficult not in (None, "ignore", "negative"):
        raise ValueError(
            "--level object counts the objects of --voc or --coco that are not difficult: it does not go with --labels "
            "or --difficult positive"
        )
    if options.coco:
        from ssgrl_fast.data import coco

        return coco.count_objects(options.coco, classes=names)
    from ssgrl_fast.data import voc

    split = options.split or voc.default_splits(options.voc)[0]
    return voc.count_objects(options.voc, split, names, allow_outside=options.allow_outside)


def _print_positives(totals: list[int], names: list[str]) -> None:
    names = [*map(for_terminal, names)]
    ranked = sorted(zip(totals, names, strict=True), reverse=True)
    say(f"  images per class: {ranked[-1][0]} ({ranked[-1][1]}) to {ranked[0][0]} ({ranked[0][1]})")
    empty = [name for total, name in zip(totals, names, strict=True) if not total]
    if empty:
        say(f"  {len(empty)} classes are in no image, their rows are zero: {', '.join(empty)}")


def _print_graph(adjacency: Tensor, names: list[str]) -> None:
    """The number of edges and the heaviest of them."""
    between = adjacency.clone().fill_diagonal_(0.0)
    pairs = len(names) * (len(names) - 1)
    edges = int((between > 0).sum())
    share = f" ({100 * edges / pairs:.1f} %)" if pairs else ""
    say(f"  edges: {edges} of {pairs}{share}, values to {adjacency.max():.3g}")
    strongest = between.flatten().sort(descending=True, stable=True).indices[: min(_STRONGEST, edges)]
    for place in strongest.tolist():
        row, column = divmod(place, len(names))
        say(f"  P({for_terminal(names[column])} | {for_terminal(names[row])}) = {adjacency[row, column]:.3f}")
