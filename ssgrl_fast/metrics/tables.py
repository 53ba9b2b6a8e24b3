"""Tables of reports: the columns of Table 1, and every class beside a baseline (Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ssgrl_fast._utils.checks import some
from ssgrl_fast._utils.escape import for_markdown
from ssgrl_fast.metrics.functional import PRF_NAMES
from ssgrl_fast.metrics.report import UNSTATED, Report, percent

PRE = "weights from"
"""The name, in recipes and in the details of reports, of the model that training started from."""


def row_title(name: str, report: Report) -> str:
    """The name of a table's row, marked "(pre)" as in the paper's tables if training started from a model of other
    classes (4.2.2)."""
    return f"{name} (pre)" if PRE in report.details else name


def table_1(reports: Mapping[str, Report]) -> str:
    """Table 1 of the paper in Markdown: methods, mAP, CP CR CF1 OP OR OF1 of the top k labels, and of all labels.

    Args:
        reports: reports by the names of their methods; values are printed in per cent.

    Raises:
        ValueError: no report, or reports that differ in k or threshold.
    """
    settings = {(report.top_k, report.threshold) for report in reports.values()}
    if len(settings) != 1:
        different = ", ".join(f"k {k} threshold {threshold:g}" for k, threshold in sorted(settings)) or "none"
        raise ValueError(f"table_1: needs reports of one k and one threshold, got {different}")
    ((top_k, _),) = settings
    names = [*(f"top-{top_k} {name}" for name in PRF_NAMES), *(f"all {name}" for name in PRF_NAMES)]
    lines = [f"| method | mAP | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for method, report in reports.items():
        values = [
            report.mean_ap,
            *(part[name] for part in (report.top_k_labels, report.all_labels) for name in PRF_NAMES),
        ]
        lines.append(f"| {for_markdown(method)} | {' | '.join(map(percent, values))} |")
    return "\n".join(lines) + "\n"


def baseline_ap(report: Report, baseline: Report, *, names: tuple[str, str] = ("report", "baseline")) -> list[float]:
    """The baseline's AP of every class in the order of the report, C fractions.

    Args:
        report, baseline: of the same classes, images and labels, AP definition and difficult rule.
        names: of the two, in error messages.

    Raises:
        ValueError: the reports have different definitions or rules, classes, images or labels. Reports without
            checksums are compared by their numbers of images and, per class, positives, negatives and ignored entries.
    """
    for name in ("ap_definition", "difficult"):
        if (mine := getattr(report, name)) != (theirs := getattr(baseline, name)):
            raise ValueError(f"{names[0]} has {name} {mine!r}, {names[1]} {theirs!r}")
    _check_classes(report, baseline, names)
    _check_images(report, baseline, names)
    by_name = dict(zip(baseline.class_names, baseline.ap, strict=True))
    return [by_name[name] for name in report.class_names]


def _check_classes(report: Report, baseline: Report, names: tuple[str, str]) -> None:
    mine, theirs = set(report.class_names), set(baseline.class_names)
    if mine != theirs:
        extra = [(names[0], sorted(mine - theirs)), (names[1], sorted(theirs - mine))]
        difference = ", ".join(f"{some(classes)} only in {name}" for name, classes in extra if classes)
        raise ValueError(f"{names[0]} and {names[1]} have different classes: {difference}")


def _check_images(report: Report, baseline: Report, names: tuple[str, str]) -> None:
    """Check that two reports are over the same images and labels, as far as they record them."""
    if report.images != baseline.images:
        counts = f"{names[0]} is over {report.images} images, {names[1]} over {baseline.images}"
        raise ValueError(f"{counts}: AP over different images cannot be compared")
    for part in ("images", "labels"):
        mine, theirs = (getattr(each, f"{part}_sha256") for each in (report, baseline))
        if UNSTATED not in (mine, theirs) and mine != theirs:
            ways = {"images": "other images", "labels": "other labels of the same images"}
            raise ValueError(
                f"{names[1]} is over {ways[part]} than {names[0]} (SHA-256 {theirs[:12]}… and {mine[:12]}…): AP over "
                f"different {part} cannot be compared"
            )
    other = {row.name: row for row in baseline.classes}
    for row in report.classes:
        for kind in ("positives", "negatives", "ignored"):
            if (mine := getattr(row, kind)) != (theirs := getattr(other[row.name], kind)):
                raise ValueError(
                    f"{names[0]} has {mine} {kind} of class {row.name!r}, {names[1]} {theirs}: AP over different "
                    "images or labels cannot be compared"
                )


def class_table(report: Report, baseline: Report, *, names: tuple[str, str] = ("model", "baseline")) -> str:
    """Every class's AP beside the baseline's in Markdown, the largest gain first (Fig. 3); undefined gaps come last.

    Raises:
        ValueError: as :func:`baseline_ap`.
    """
    other = baseline_ap(report, baseline)
    rows = [
        (row.name, row.ap, rival, row.ap - rival, row.positives)
        for row, rival in zip(report.classes, other, strict=True)
    ]
    rows.sort(key=lambda row: (math.isnan(row[3]), -row[3] if not math.isnan(row[3]) else 0.0, row[0]))
    lines = [f"| class | {names[0]} AP | {names[1]} AP | gap | positives |", "|---|---|---|---|---|"]
    for name, mine, rival, gap, positives in rows:
        shown = "-" if math.isnan(gap) else f"{100 * gap:+.2f}"
        lines.append(f"| {for_markdown(name)} | {percent(mine)} | {percent(rival)} | {shown} | {positives} |")
    return "\n".join(lines) + "\n"
