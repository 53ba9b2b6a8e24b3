"""The verb ``predict``: the labels of image files as JSON.

ssgrl-fast predict photos/ --model runs/cards/version_0/bundle --output labels.json --overlays overlays
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from ssgrl_fast.cli._options import add_predictor_options, load_predictor, verb_parser
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.data.images import passed_over_text
from ssgrl_fast.inference.image_files import newest_bundle, search_images
from ssgrl_fast.inference.predict import RowOptions, predict_rows, run_facts
from ssgrl_fast.inference.prediction_files import check_output, rows_present, write_json, write_rows


def main(argv: Sequence[str]) -> int:
    """Run ``predict``: write the JSON, and a line about it to standard error.

    Raises:
        FileNotFoundError, ValueError: see :func:`search_images`, :class:`~ssgrl_fast.inference.predictor.Predictor` and
            :func:`~ssgrl_fast.inference.predict.predict_rows`.
    """
    options = _parser().parse_args(argv)
    files, passed_over = search_images(options.paths)
    output = None if options.output is None else Path(options.output)
    model = options.model or newest_bundle(Path("runs"))
    if output is not None:
        check_output(output, files, Path(model))
    predictor = load_predictor(model, options)
    chosen = RowOptions(
        top=options.top,
        threshold=options.threshold,
        batch_size=options.batch_size,
        overlays=None if options.overlays is None else Path(options.overlays),
        overlay_maps=options.overlay_maps,
        skip_broken=options.skip_broken,
        readers=options.readers,
        progress=not options.no_progress,
    )
    facts, others = run_facts(predictor, chosen), [str(path) for path in passed_over]
    start = rows_present(output or Path("-"), facts, files, batch_size=chosen.batch_size) if options.resume else 0
    rows = predict_rows(predictor, files, chosen, start=start)
    if output is None:
        text = io.StringIO()  # nothing is printed of a run that fails
        counts = write_json(text, facts, rows, others)
        sys.stdout.write(text.getvalue())
    else:
        counts = write_rows(output, facts, rows, passed_over=others, start=start)
    line = f"{counts['images']} images, {counts['broken']} broken and left out"
    if start:
        line += f", {start} rows were there before"
    if passed_over:
        line += f", {passed_over_text(passed_over)}"
    say(f"{line}; {options.output or 'JSON above'}; model {predictor.source}", sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("predict")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files, or folders that are searched for them")
    parser.add_argument(
        "--model", metavar="BUNDLE", help="bundle, a model as fit exports it (newest of runs/*/version_*/bundle)"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="file to write, .json, .jsonl or .csv (JSON to the standard output)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue a .jsonl that an interrupted run of the same command has left"
    )
    parser.add_argument("--overlays", metavar="FOLDER", help="also write attention overlays as PNG into this folder")
    parser.add_argument("--overlay-maps", type=int, default=3, help="number of overlays per image (3)")
    parser.add_argument(
        "--top", type=int, metavar="K", help="keep the K highest scores per image and predict among them (all)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="probability above which a label is predicted (0.5)"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="images per batch (8)")
    parser.add_argument(
        "--readers", type=int, metavar="N", help="threads that read images while the network runs (one per core)"
    )
    add_predictor_options(parser)
    parser.add_argument("--skip-broken", action="store_true", help="list broken images in the output and continue")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")
    return parser
