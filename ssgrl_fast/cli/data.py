"""The verbs ``visual-genome`` and ``comp1``: a data set's labels to a table, and predictions to a server's files.

ssgrl-fast visual-genome --objects objects.json --root visual_genome
ssgrl-fast visual-genome --labels labels.json --train-list train.txt --test-list test.txt --root visual_genome
ssgrl-fast comp1 predictions.json --out results/VOC2012/Main
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from ssgrl_fast.data import visual_genome, voc
from ssgrl_fast.inference import comp1
from ssgrl_fast.labels.class_names import read_class_names


def register(subparsers: Any) -> None:
    """Add both verbs to an argparse subparser collection; each sets ``run``."""
    text = "VG-500 as a table of labels, from Visual Genome's objects or the published lists"
    parser = subparsers.add_parser("visual-genome", help=text, description=text)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--objects", metavar="JSON", help="Visual Genome's objects.json")
    source.add_argument("--labels", metavar="JSON", help="the published label file, image to class indices")
    parser.add_argument("--train-list", metavar="FILE", help="with --labels: the training images, one a line")
    parser.add_argument("--test-list", metavar="FILE", help="with --labels: the test images, one a line")
    parser.add_argument("--class-names", metavar="FILE", help="with --labels: the names, which are published nowhere")
    parser.add_argument("--root", required=True, help="the folder of VG_100K and VG_100K_2; labels.csv goes there")
    parser.add_argument("--classes", type=int, default=500, help="how many names (500)")
    parser.add_argument(
        "--test-images", type=int, default=10_000, help="with --objects: how many are set aside (10000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="with --objects: of the draw (0)")
    parser.set_defaults(run=run_visual_genome)

    text = "what predict wrote to the files of the Pascal VOC evaluation server"
    parser = subparsers.add_parser("comp1", help=text, description=text)
    parser.add_argument("predictions", help="JSON of `ssgrl-fast predict`, with the scores of every class")
    parser.add_argument(
        "--images", metavar="FILE", help="write these image ids alone, one a line (ImageSets/Main/test.txt)"
    )
    parser.add_argument("--split", default="test", help="the image set's name (test)")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where the files go")
    parser.set_defaults(run=run_comp1)


def run_visual_genome(args: argparse.Namespace) -> int:
    """Write the table and say what it holds.

    Raises:
        FileNotFoundError, ValueError, BrokenAnnotation: see :mod:`ssgrl_fast.data.visual_genome`; or options missing.
    """
    if args.objects:
        sizes = {"classes": args.classes, "test_images": args.test_images, "seed": args.seed}
        counts = visual_genome.build_from_objects(args.objects, args.root, **sizes)
    else:
        if not (args.train_list and args.test_list):
            raise ValueError("visual-genome: --labels needs --train-list and --test-list")
        names = None if args.class_names is None else read_class_names(args.class_names)
        lists = {"train": args.train_list, "test": args.test_list}
        counts = visual_genome.convert_published(args.labels, lists, args.root, classes=args.classes, class_names=names)
    print(f"{Path(args.root) / 'labels.csv'}: {args.classes} classes; images: {counts}")
    return 0


def run_comp1(args: argparse.Namespace) -> int:
    """Write the files and say how many images they cover.

    Raises:
        FileNotFoundError: no such predictions or list.
        ValueError: predictions of another kind or without some scores, an image twice, or a listed one not among them.
    """
    path = Path(args.predictions)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such predictions")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names, files = content["class_names"], content["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not what `ssgrl-fast predict --output` writes ({error!r})") from error
    scores: dict[str, torch.Tensor] = {}
    for entry in files:
        identity, found = Path(entry["file"]).stem, {row["class"]: row["score"] for row in entry["scores"]}
        if set(found) != set(names):
            raise ValueError(f"{path}: {entry['file']} has {len(found)} of {len(names)} scores: predict without --top")
        if identity in scores:
            raise ValueError(f"{path}: two images are called {identity}")
        scores[identity] = torch.tensor([found[name] for name in names])
    if args.images:
        wanted = voc.read_list(Path(args.images))
        if absent := [name for name in wanted if name not in scores]:
            raise ValueError(f"{path}: {len(absent)} of {len(wanted)} listed images have no scores, {absent[0]} first")
        scores = {name: scores[name] for name in wanted}
    written = comp1.write_comp1(args.out, names, scores, split=args.split)
    print(f"{args.out}: {len(written)} files of {len(scores)} images")
    return 0
