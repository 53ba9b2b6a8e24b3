"""The verb ``app``: a page in the browser that shows what a bundle says about a photograph, and why.

ssgrl-fast app --model runs/cards/version_0/bundle

The page needs the extra ``app`` (Gradio). :mod:`ssgrl_fast.inference.app.explorer` holds what it shows, without Gradio.
"""

from __future__ import annotations

import argparse
from typing import Any

from ssgrl_fast.cli.predict import add_predictor_options, load_predictor
from ssgrl_fast.inference.app.explorer import Analysis, Explorer
from ssgrl_fast.inference.predict import find_images

__all__ = ["Analysis", "Explorer", "register", "run_app"]


def register(subparsers: Any) -> None:
    """Add the verb ``app`` to an argparse subparser collection; it sets ``run``."""
    text = "a page to look at: labels of a photograph, their attention, and the neighbours that raised them"
    parser = subparsers.add_parser("app", help=text, description=text)
    parser.add_argument("--model", required=True, metavar="BUNDLE", help="folder of an SSGRL bundle, or a Hub name")
    parser.add_argument(
        "--examples", nargs="+", default=[], metavar="PATH", help="image files or folders to choose from"
    )
    parser.add_argument("--neighbours", type=int, default=24, help="neighbours computed a label, heaviest edges (24)")
    add_predictor_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, help="port (the first free one from 7860)")
    parser.set_defaults(run=run_app)


def run_app(options: argparse.Namespace) -> int:
    """``app``: serve the page until it is interrupted.

    Raises:
        ImportError: Gradio is missing; the message names the extra.
        FileNotFoundError, ValueError: see :class:`ssgrl_fast.inference.predict.Predictor` and :class:`Explorer`.
    """
    from ssgrl_fast.inference.app import page

    explorer = Explorer(load_predictor(options.model, options), neighbours=options.neighbours)
    examples = find_images(options.examples) if options.examples else []
    page.serve(explorer, examples=examples, host=options.host, port=options.port)
    return 0
