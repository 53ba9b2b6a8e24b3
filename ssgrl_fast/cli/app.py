"""The verb ``app``: a page in the browser that shows the labels of a photograph and what raised them.

ssgrl-fast app --model runs/cards/version_0/bundle

The page needs the extra ``app`` (Gradio).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ssgrl_fast.cli._options import add_predictor_options, load_predictor, verb_parser
from ssgrl_fast.inference.app.explorer import Explorer, read_thresholds
from ssgrl_fast.inference.image_files import find_images


def main(argv: Sequence[str]) -> int:
    """Run ``app``: serve the page until it is interrupted.

    Raises:
        ImportError: Gradio is missing; the message names the extra.
        FileNotFoundError, ValueError: see :class:`~ssgrl_fast.inference.predictor.Predictor` and :class:`Explorer`.
    """
    options = _parser().parse_args(argv)
    if options.port is not None and not 0 < options.port < 1 << 16:
        raise ValueError(f"app: --port must be from 1 to 65535, got {options.port}")
    from ssgrl_fast.inference.app import page

    predictor = load_predictor(options.model, options)
    thresholds = read_thresholds(options.threshold, predictor.class_names)
    explorer = Explorer(predictor, neighbours=options.neighbours, thresholds=thresholds)
    examples = find_images(options.examples) if options.examples else []
    page.serve(explorer, examples=examples, host=options.host, port=options.port, queue=options.queue)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("app")
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="BUNDLE",
        help="bundle of an SSGRL model, as fit exports it: a folder, or a Hub repository",
    )
    add("--examples", nargs="+", default=[], metavar="PATH", help="image files or folders to choose from on the page")
    add("--neighbours", type=int, default=24, help="neighbours to compute per label, those of the heaviest edges (24)")
    add(
        "--threshold",
        default="0.5",
        metavar="P",
        help="probability above which a label is predicted, or an evaluation.json with one for each class (0.5)",
    )
    add("--queue", type=int, default=100, help="requests that may wait; more are turned away (100)")
    add_predictor_options(parser)
    add("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    add("--port", type=int, help="port to listen on (the first free one from 7860)")
    return parser
