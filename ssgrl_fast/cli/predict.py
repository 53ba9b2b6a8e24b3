"""The verb ``predict``: the labels of images as JSON, CSV or Parquet.

ssgrl-fast predict photos/ --model runs/cards/version_0/bundle --output labels.json --overlays overlays
ssgrl-fast predict --list names.txt --model runs/cards/version_0/bundle --output labels/ --devices 2 --resume
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePath

from ssgrl_fast.cli._options import add_predictor_options, predictor_settings, verb_parser
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.data.images import passed_over_text
from ssgrl_fast.data.sources import is_address, open_images
from ssgrl_fast.inference.image_files import find_sources, newest_bundle
from ssgrl_fast.inference.predict import RowOptions, as_row, run_facts, score_files
from ssgrl_fast.inference.prediction_files import (
    check_folder,
    check_output,
    is_folder,
    rows_present,
    write_json,
    write_rows,
)
from ssgrl_fast.inference.processes import Job, known_total, predict_by_processes
from ssgrl_fast.inference.shards import SHARD_ROWS

_ROWS = {"local": SHARD_ROWS, "ray": 512}  # of a shard, by engine: Ray repeats a whole one after a kill


def main(argv: Sequence[str]) -> int:
    """Run ``predict``: write the rows, and a line about them to standard error.

    Raises:
        FileNotFoundError, ValueError: see :func:`~ssgrl_fast.inference.image_files.find_sources`,
            :class:`~ssgrl_fast.inference.predictor.Predictor` and :func:`~ssgrl_fast.inference.predict.score_files`.
        ChildProcessError: see :func:`~ssgrl_fast.inference.processes.predict_by_processes`.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if not options.paths and not options.list:
        parser.error("the following arguments are required: PATH, or --list FILE")
    names, passed_over = find_sources(options.paths, options.list, options.list_column)
    model = options.model or newest_bundle(Path("runs"))
    chosen = RowOptions(
        top=options.top,
        threshold=options.threshold,
        batch_size=options.batch_size,
        overlays=None if options.overlays is None else Path(options.overlays),
        overlay_maps=options.overlay_maps,
        skip_broken=options.skip_broken,
        readers=options.readers,
        progress=not options.no_progress,
        attention=options.attention,
    )
    output = (options.output or "-").removeprefix("file://")
    job = Job(str(model), predictor_settings(options), chosen, output, options.shard_rows or _ROWS[options.engine])
    for name in ("devices", "shard_rows", "actors"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"predict: --{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    if options.output is not None and is_folder(output):
        line = _to_folder(job, names, options)
    elif options.devices != 1 or options.engine != "local":
        raise ValueError("predict: --devices and --engine ray write shards: --output must be a folder or an address")
    else:
        line = _to_file(job, names, passed_over, options)
    if passed_over:
        line += f", {passed_over_text(map(PurePath, passed_over))}"
    say(f"{line}; {options.output or 'JSON above'}; model {model}", sys.stderr)
    return 0


def _to_folder(job: Job, names: Sequence[str], options: argparse.Namespace) -> str:
    """Write shards; a line about them."""
    if job.options.overlays is not None:
        raise ValueError("predict: --overlays are written beside a file, --output is a folder of shards")
    check_folder(job.output, Path(job.bundle), resume=options.resume)
    if options.engine == "ray":
        from ssgrl_fast.inference.ray_data import predict_by_ray

        return _counted(predict_by_ray(job, names, actors=options.actors, address=options.address))
    if options.devices > 1:
        return _counted(predict_by_processes(job, names, options.devices))
    return _counted(sum(job.run(names), Counter()))


def _to_file(job: Job, names: Sequence[str], passed_over: Sequence[str], options: argparse.Namespace) -> str:
    """Write one file, or the standard output; a line about it."""
    output = None if options.output is None else Path(options.output)
    if job.options.attention and (output is None or output.suffix != ".parquet"):
        raise ValueError(
            f"predict: --attention needs --output in Parquet, a file or a folder of shards, got {output or 'JSON'}"
        )
    if output is not None:
        check_output(output, [Path(name) for name in names if not is_address(name)], Path(job.bundle))
    predictor, start = job.predictor(), 0
    facts = run_facts(predictor, job.options)
    if options.resume:
        present = (image.name for image in open_images(names))
        start = rows_present(output or Path("-"), facts, present, batch_size=options.batch_size)
    images = islice(open_images(names), start, None)
    total = known_total(names)
    left = None if total is None else total - start
    scored = score_files(predictor, images, job.options, start=start, total=left)
    if output is None:
        text = io.StringIO()  # nothing is printed of a run that fails
        counts = write_json(text, facts, (as_row(each, facts) for each in scored), passed_over)
        sys.stdout.write(text.getvalue())
    else:
        counts = write_rows(output, facts, scored, passed_over=passed_over, start=start)
    return _counted(counts) + (f", {start} rows were there before" if start else "")


def _counted(counts: dict[str, int]) -> str:
    return f"{counts.get('images', 0)} images, {counts.get('broken', 0)} broken and left out"


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("predict")
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="image files, tar shards, addresses such as s3://bucket/photos, or folders that are searched for images",
    )
    parser.add_argument(
        "--list",
        action="append",
        default=[],
        metavar="FILE",
        help="a list of images and tar shards: text with a name per line, or a table in CSV or Parquet; repeatable",
    )
    parser.add_argument("--list-column", default="file", metavar="NAME", help="column of a table of names (file)")
    parser.add_argument(
        "--model", metavar="BUNDLE", help="bundle, a model as fit exports it (newest of runs/*/version_*/bundle)"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file to write, .json, .jsonl, .csv or .parquet, or a folder or address for shards in Parquet "
        "(JSON to the standard output)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the .jsonl or the folder of shards that an interrupted run has left",
    )
    parser.add_argument(
        "--devices", type=int, default=1, metavar="N", help="processes, each with a device of its own; for shards (1)"
    )
    parser.add_argument(
        "--shard-rows",
        type=int,
        metavar="N",
        help=f"images per shard at most ({_ROWS['local']}; with Ray {_ROWS['ray']})",
    )
    parser.add_argument(
        "--engine",
        default="local",
        choices=list(_ROWS),
        help="who divides the work: this process with its --devices, or Ray Data on a cluster (local)",
    )
    parser.add_argument(
        "--actors", type=int, default=1, metavar="N", help="with Ray: processes that hold the model (1)"
    )
    parser.add_argument(
        "--address",
        help="with Ray: address of the cluster; auto: the one of this machine (a new one on this machine alone)",
    )
    parser.add_argument(
        "--attention",
        action="store_true",
        help="with Parquet: also write the attention maps of the classes with scores, float16",
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
