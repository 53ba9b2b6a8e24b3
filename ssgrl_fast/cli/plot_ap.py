"""The verb ``plot-ap``: a bar chart of the AP of every class.

ssgrl-fast plot-ap runs/ssgrl/report_test.json --baseline runs/pooling/report_test.json --out ap.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ssgrl_fast.cli._options import verb_parser
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.inference.figures import ap_chart, save_figure
from ssgrl_fast.metrics import Report, baseline_ap


def main(argv: Sequence[str]) -> int:
    """Run ``plot-ap``: report files to a chart.

    Raises:
        FileNotFoundError, ValueError: a report that does not exist or is not one; reports of different classes, images
            or AP definitions.
    """
    options = _parser().parse_args(argv)
    report = Report.from_json(options.report)
    baseline: list[float] | None = None
    if options.baseline is not None:
        titles = (f"plot-ap: {options.report}", options.baseline)
        baseline = baseline_ap(report, Report.from_json(options.baseline), names=titles)
    note = f"AP definition {report.ap_definition}, difficult rule {report.difficult}, {report.images} images"
    labels = (options.labels[0], options.labels[1])
    figure = ap_chart(report.class_names, report.ap, baseline=baseline, labels=labels, title=options.title, note=note)
    say(f"chart in {save_figure(figure, options.out)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("plot-ap")
    add = parser.add_argument
    add("report", metavar="REPORT.json", help="report.json of evaluate, or report_test.json of test")
    add("--baseline", metavar="REPORT.json", help="report of a baseline on the same classes and images")
    add(
        "--labels",
        nargs=2,
        default=("SSGRL", "baseline"),
        metavar=("MODEL", "BASELINE"),
        help="names of the two in the legend (SSGRL baseline)",
    )
    add("--title", help="title of the chart (Average precision of each class)")
    add("--out", default="ap.png", help="picture to write: .png, .pdf, .svg or .jpg (ap.png)")
    return parser
