"""The verb ``visual-genome``: the table of labels of VG-500.

ssgrl-fast visual-genome --objects objects.json --root visual_genome
ssgrl-fast visual-genome --labels labels.json --train-list train.txt --test-list test.txt --root visual_genome
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssgrl_fast.cli._options import verb_parser
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.data import visual_genome
from ssgrl_fast.labels.class_names import read_class_names


def main(argv: Sequence[str]) -> int:
    """Run ``visual-genome``: write the table and print the number of its images.

    Raises:
        FileNotFoundError, ValueError, BrokenAnnotation: see :mod:`ssgrl_fast.data.visual_genome`; or options missing.
    """
    options = _parser().parse_args(argv)
    if options.objects:
        counts = visual_genome.build_from_objects(
            options.objects, options.root, classes=options.classes, test_images=options.test_images, seed=options.seed
        )
    else:
        if not (options.train_list and options.test_list):
            raise ValueError("visual-genome: --labels needs --train-list and --test-list")
        counts = visual_genome.convert_published(
            options.labels,
            {"train": options.train_list, "test": options.test_list},
            options.root,
            classes=options.classes,
            class_names=None if options.class_names is None else read_class_names(options.class_names),
        )
    say(f"{Path(options.root) / 'labels.csv'}: {options.classes} classes; images: {counts}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("visual-genome")
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--objects", metavar="JSON", help="Visual Genome's objects.json")
    source.add_argument("--labels", metavar="JSON", help="the published label file, image to class indices")
    add("--train-list", metavar="FILE", help="with --labels: the training images, one per line")
    add("--test-list", metavar="FILE", help="with --labels: the test images, one per line")
    add(
        "--class-names",
        metavar="FILE",
        help="with --labels: the class names, which are not published (class 0, class 1, ...)",
    )
    add("--root", required=True, metavar="FOLDER", help="folder of VG_100K and VG_100K_2; labels.csv is written here")
    add("--classes", type=int, default=500, help="number of classes (500)")
    add("--test-images", type=int, default=10_000, help="with --objects: number of test images (10000)")
    add("--seed", type=int, default=0, help="with --objects: seed that chooses the test images (0)")
    return parser
