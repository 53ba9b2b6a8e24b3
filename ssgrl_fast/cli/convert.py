"""The verb ``convert``: a checkpoint of the published code as a bundle.

ssgrl-fast convert model_best.pth.tar --words words.npy --graph prob_train.npy --class-names names.txt --out BUNDLE
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ssgrl_fast.cli._options import add_compound_option, compounds_of, verb_parser
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.labels import graph, origin, words
from ssgrl_fast.labels.class_names import read_class_names
from ssgrl_fast.published.checkpoint import load_official_checkpoint, read_official


def main(argv: Sequence[str]) -> int:
    """Run ``convert``: write the bundle, and print what the checkpoint holds.

    Raises:
        FileNotFoundError, ValueError: see :func:`~ssgrl_fast.published.checkpoint.load_official_checkpoint`.
        FileExistsError: the folder to write is a file.
        ValueError: --resize without --image-size.
    """
    args = _parser().parse_args(argv)
    if args.resize is not None and args.image_size is None:
        raise ValueError("convert: --resize needs --image-size")
    found = read_official(args.checkpoint)
    sizes = found.sizes
    say(f"{args.checkpoint}: {found.layout.name}, {sizes['C']} classes, words of {sizes['S']} numbers, D {sizes['D']}")
    for name, value in found.facts.items():
        say(f"  {name}: {value}")
    names = read_class_names(args.class_names)
    vectors = None if args.words is None else words.lookup(args.words, names, compounds=compounds_of(args))
    saved = None if args.graph is None else graph.read(args.graph)
    adjacency = None if saved is None else saved.ordered(names)
    model = load_official_checkpoint(
        found,
        None if vectors is None else vectors.vectors,
        adjacency,
        class_names=names,
        backbone=args.backbone,
        steps=args.steps,
    )
    held = {"how": f"held by {args.checkpoint}"}
    model.origin = origin.record(
        names,
        {**held, "sha256": origin.matrix_sha256(model.head.words)}
        if vectors is None
        else origin.read_words(args.words, vectors),
        {**held, "sha256": origin.matrix_sha256(model.head.adjacency)}
        if saved is None or adjacency is None
        else origin.read_graph(saved, adjacency),
    )
    if args.image_size is not None:
        model.preprocessing = {"image_size": args.image_size, "resize": args.resize or args.image_size}
    model.save_pretrained(args.out)
    if model.preprocessing is None:
        say("image size not known: no file tells it; predict and evaluate need --image-size, or convert with it")
    else:
        say(f"images resized to {model.preprocessing['resize']}, cropped to {model.preprocessing['image_size']}")
    say(f"{Path(args.out).resolve()}: mode {model.head.mode}, {args.steps} steps, backbone {args.backbone}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("convert")
    add = parser.add_argument
    add("checkpoint", help="a torch file of any age; no code in it is run")
    add(
        "--class-names",
        metavar="FILE",
        required=True,
        help="class names in the order of training, one per line or a JSON list",
    )
    add("--words", help="the word vectors of its training: .npy, a text file, or a package's name")
    add_compound_option(parser)
    add("--graph", metavar="FILE", help="the graph of its training: .npy, .npz or .safetensors")
    add("--backbone", default="resnet101", help="a torchvision ResNet (resnet101)")
    add("--steps", type=int, default=3, help="propagation steps T, which checkpoints do not hold (3)")
    add(
        "--image-size",
        type=int,
        help="side of the network's input in its training, pixels (SSGRL as published: 576; else not stated)",
    )
    add("--resize", type=int, help="side that images were resized to before the crop (640; IMAGE_SIZE)")
    add("--out", metavar="FOLDER", required=True, help="folder of the bundle to write")
    return parser
