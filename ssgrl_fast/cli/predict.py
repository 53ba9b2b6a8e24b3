"""The verb ``predict``: the labels of image files as JSON.

ssgrl-fast predict photos/ --model runs/cards/version_0/bundle --output labels.json --overlays overlays
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ssgrl_fast._utils.files import check_own, write_text
from ssgrl_fast.cli._options import add_predictor_options, load_predictor, verb_parser
from ssgrl_fast.data.images import passed_over_text
from ssgrl_fast.inference.predict import FORMAT, newest_bundle, predict_files, search_images


def main(argv: Sequence[str]) -> int:
    """Run ``predict``: write the JSON, and a line about it to standard error.

    Raises:
        FileExistsError: --output is a file that predict has not written.
        FileNotFoundError, ValueError: see :func:`search_images`, :class:`~ssgrl_fast.inference.predict.Predictor` and
            :func:`predict_files`.
    """
    options = _parser().parse_args(argv)
    if options.output is not None:
        check_own(options.output, f'"format": "{FORMAT}"', "--output")
    files, passed_over = search_images(options.paths)
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
    result["passed_over"] = [str(path) for path in passed_over]
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if options.output is None:
        sys.stdout.write(text)
    else:
        write_text(options.output, text)
    counts = f"{result['images']} images, {len(result['broken'])} broken and left out"
    if passed_over:
        counts += f", {passed_over_text(passed_over)}"
    print(f"{counts}; {options.output or 'JSON above'}; model {predictor.source}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("predict")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, or folders that are searched for them")
    parser.add_argument(
        "--model", metavar="BUNDLE", help="bundle, a model as fit exports it (newest of runs/*/version_*/bundle)"
    )
    parser.add_argument("--output", metavar="FILE.json", help="JSON file to write (standard output)")
    parser.add_argument("--overlays", metavar="FOLDER", help="also write attention overlays as PNG into this folder")
    parser.add_argument("--overlay-maps", type=int, default=3, help="number of overlays per image (3)")
    parser.add_argument(
        "--top", type=int, metavar="K", help="keep the K highest scores per image and predict among them (all)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="probability above which a label is predicted (0.5)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="images per batch (8)")
    add_predictor_options(parser)
    parser.add_argument("--skip-broken", action="store_true", help="list broken images in the JSON and continue")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    return parser
