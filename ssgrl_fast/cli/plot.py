"""The verbs ``plot-ap`` and ``plot-attention``: the figures of :mod:`ssgrl_fast.inference.figures` from files.

ssgrl-fast plot-ap runs/ssgrl/report_test.json --baseline runs/pooling/report_test.json --out ap.png
ssgrl-fast plot-attention --model runs/ssgrl/bundle photos/ --out attention.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssgrl_fast.cli.predict import add_predictor_options, load_predictor
from ssgrl_fast.inference.figures import ap_chart, attention_sheet, save_figure
from ssgrl_fast.inference.predict import find_images


def register(subparsers: Any) -> None:
    """Add the verbs ``plot-ap`` and ``plot-attention`` to an argparse subparser collection; each sets ``run``."""
    text = "bar chart of the AP of every class, beside a baseline's"
    chart = subparsers.add_parser("plot-ap", help=text, description=text)
    chart.add_argument("report", metavar="REPORT.json", help="report that `test` wrote")
    chart.add_argument("--baseline", metavar="REPORT.json", help="report of the baseline on the same classes")
    chart.add_argument("--labels", nargs=2, default=("SSGRL", "baseline"), metavar=("MODEL", "BASELINE"))
    chart.add_argument("--title", help="above the chart")
    chart.add_argument("--out", default="ap.png", help="picture to write: .png, .pdf, .svg or .jpg (ap.png)")
    chart.set_defaults(run=run_plot_ap)
    text = "sheet of images, attention maps and label distributions (Fig. 4 of the paper)"
    sheet = subparsers.add_parser("plot-attention", help=text, description=text)
    sheet.add_argument("paths", nargs="+", metavar="PATH", help="image files or folders")
    sheet.add_argument("--model", required=True, metavar="BUNDLE", help="folder of an SSGRL bundle")
    sheet.add_argument("--labels", metavar="FILE", help="true labels: JSON {file name: [class names]}, shown in red")
    sheet.add_argument("--count", type=int, default=6, help="rows at most, spread evenly over the images found (6)")
    sheet.add_argument("--maps", type=int, default=3, help="attention maps a row (3)")
    add_predictor_options(sheet)
    sheet.add_argument("--title", help="above the sheet")
    sheet.add_argument("--out", default="attention.png", help="picture to write (attention.png)")
    sheet.set_defaults(run=run_plot_attention)


def run_plot_ap(options: argparse.Namespace) -> int:
    """``plot-ap``: report files to a chart.

    Raises:
        FileNotFoundError, ValueError: a report that is missing or none, or two of different classes or AP definitions.
    """
    from ssgrl_fast.metrics import Report, baseline_ap

    report = Report.from_json(options.report)
    other = None if options.baseline is None else Report.from_json(options.baseline)
    baseline: list[float] | None = None
    if other is not None:
        baseline = baseline_ap(report, other, names=(f"plot-ap: {options.report}", str(options.baseline)))
    note = f"AP definition {report.ap_definition}, difficult rule {report.difficult}, {report.images} images"
    labels = (options.labels[0], options.labels[1])
    figure = ap_chart(report.class_names, report.ap, baseline=baseline, labels=labels, title=options.title, note=note)
    print(f"chart in {save_figure(figure, options.out)}")
    return 0


def run_plot_attention(options: argparse.Namespace) -> int:
    """``plot-attention``: a bundle and images to a sheet.

    Raises:
        FileNotFoundError, ValueError: see :class:`ssgrl_fast.inference.predict.Predictor`; labels that are no class of
            the model.
    """
    if options.count < 1:
        raise ValueError(f"plot-attention: --count must be at least 1, got {options.count}")
    predictor = load_predictor(options.model, options)
    found = find_images(options.paths)
    chosen = [found[round(place)] for place in np.linspace(0, len(found) - 1, min(options.count, len(found)))]
    known = {} if options.labels is None else _read_labels(Path(options.labels), predictor.class_names)
    samples = [predictor.sample(path, known.get(path.name)) for path in chosen]
    figure = attention_sheet(samples, predictor.class_names, maps=options.maps, title=options.title)
    print(f"{len(samples)} of {len(found)} images on the sheet {save_figure(figure, options.out)}")
    return 0


def _read_labels(path: Path, class_names: Sequence[str]) -> dict[str, NDArray[np.int8]]:
    if not path.is_file():
        raise FileNotFoundError(f"plot-attention: {path} is no file")
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"plot-attention: {path} cannot be read as JSON: {error}") from error
    if not isinstance(listed, dict) or not all(isinstance(names, list) for names in listed.values()):
        raise ValueError(f"plot-attention: {path} must be a JSON object, file name to a list of class names")
    unknown = sorted({str(name) for names in listed.values() for name in names if name not in class_names})
    if unknown:
        raise ValueError(f"plot-attention: {path} names classes that the model has not: {', '.join(unknown)}")
    return {
        file: np.array([1 if name in names else -1 for name in class_names], dtype=np.int8)
        for file, names in listed.items()
    }
