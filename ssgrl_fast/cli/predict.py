"""The verb ``predict``: image files to JSON; and the options of every verb that shows images to a bundle.

ssgrl-fast predict photos/ --model runs/cards/version_0/bundle --output labels.json --overlays overlays
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.files import write_text
from ssgrl_fast.inference.predict import Predictor, find_images, newest_bundle, predict_files


def register(subparsers: Any) -> None:
    """Add the verb ``predict`` to an argparse subparser collection; it sets ``run``."""
    text = "labels of image files or folders as JSON, with attention overlays on request"
    parser = subparsers.add_parser("predict", help=text, description=text)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, or folders that are searched for them")
    parser.add_argument("--model", metavar="BUNDLE", help="bundle (the newest runs/*/version_*/bundle)")
    parser.add_argument("--output", metavar="FILE.json", help="where the JSON goes (standard output)")
    parser.add_argument("--overlays", metavar="FOLDER", help="write attention overlays there as PNG")
    parser.add_argument("--overlay-maps", type=int, default=3, help="overlays an image (3)")
    parser.add_argument("--top", type=int, metavar="K", help="keep the K highest scores and predict among them (all)")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability above which a label counts (0.5)")
    parser.add_argument("--batch-size", type=int, default=8, help="images at a time (8)")
    add_predictor_options(parser)
    parser.add_argument("--skip-broken", action="store_true", help="list broken images in the JSON and go on")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    parser.set_defaults(run=run_predict)


def add_predictor_options(parser: argparse.ArgumentParser) -> None:
    """The options of the verbs that show images to a bundle, which :func:`load_predictor` reads."""
    parser.add_argument("--image-size", type=int, help="side of the network's input, pixels (the bundle's)")
    parser.add_argument("--resize", type=int, help="side of the square before the centre crop (the bundle's)")
    parser.add_argument("--device", default="cpu", help="where the model runs (cpu)")
    parser.add_argument("--backend", help="backend of the three operations (the fastest)")


def load_predictor(bundle: str | Path, options: argparse.Namespace) -> Predictor:
    """The predictor that :func:`add_predictor_options` describe.

    Raises:
        FileNotFoundError, ValueError, BackendUnavailable: see :meth:`Predictor.load`.
    """
    sizes = {"image_size": options.image_size, "resize": options.resize}
    return Predictor.load(bundle, **sizes, device=options.device, backend=options.backend)


def run_predict(options: argparse.Namespace) -> int:
    """``predict``: write the JSON and say on standard error how many files it covers.

    Raises:
        FileNotFoundError, ValueError: see :func:`find_images`, :class:`Predictor` and :func:`predict_files`.
    """
    files = find_images(options.paths)
    predictor = load_predictor(options.model or newest_bundle(Path("runs")), options)
    result = predict_files(
        predictor,
        files,
        top=options.top,
        threshold=options.threshold,
        batch_size=options.batch_size,
        overlays=None if options.overlays is None else Path(options.overlays),
        overlay_maps=options.overlay_maps,
        skip_broken=options.skip_broken,
        progress=not options.no_progress,
    )
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if options.output is None:
        sys.stdout.write(text)
    else:
        write_text(options.output, text)
    said = f"{result['images']} images, {len(result['broken'])} broken and left out"
    print(f"{said}; {options.output or 'JSON above'}; model {predictor.source}", file=sys.stderr)
    return 0
