"""``python -m benchmarks.plot``: draws the figures of every results file, results/<device>-<dtype>-<kind>.png.

- ``speedup``: speed of each rival relative to the published form, by C and B.
- ``scaling``: time and extra memory against C with fitted exponents; marks where a rival ran out of memory.
- ``roofline``: share of the machine's matrix product rate against FLOP per byte.
- ``latency``: milliseconds at B = 1, inference.

Only results of one run are compared: for each case the latest run that has it, for a scaling curve the latest run with
at least two sizes.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import scaling
from benchmarks.harness.report import PRODUCTS, RESULTS
from ssgrl_fast.inference.figures import save_figure

BASELINES = ("published-float32", "published")
COLOURS = {
    "published": "#b3bccb",
    "published-float32": "#d3d9e2",
    "published-autocast": "#8d99ab",
    "published-compiled": "#5f6f86",
    "handwritten": "#e5b97c",
    "handwritten-compiled": "#c0722b",
    "reference": "#8fbfb2",
    "cpu": "#1f5a94",
    "triton": "#1f5a94",
    "cuda": "#12355b",
    "captured": "#4f9bd9",
    PRODUCTS: "#3a3f45",
}
MUTED = "#5a6270"


@dataclass(frozen=True)
class Point:
    """The columns of a results row that the figures use; None for an empty cell."""

    date: str
    shape: str
    B: int
    C: int
    dtype: str
    mode: str
    rival: str
    status: str
    ms: float | None
    extra_bytes: float | None
    flop: float | None
    bytes: float | None
    share_product: float | None
    ridge: float | None  # FLOP per byte at which product and copy take equally long

    @property
    def case(self) -> tuple[str, int, str]:
        return self.shape, self.B, self.mode


def read(path: Path) -> list[Point]:
    """The rows of operation "head" of a results file, in order, without the rows that --base added.

    Raises:
        ValueError: the file is not a results file.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "share_product" not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: no results file of these benchmarks: it has no column share_product")
        return [_point(row) for row in reader if row["operation"] == "head" and "@" not in row["rival"]]


def _point(row: dict[str, str]) -> Point:
    def value(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    product, copy = value("product_flop_per_s"), value("copy_bytes_per_s")
    return Point(
        date=row["date"],
        shape=row["shape"],
        B=int(row["B"]),
        C=int(row["C"]),
        dtype=row["dtype"],
        mode=row["mode"],
        rival=row["rival"],
        status=row["status"],
        ms=value("p50_ms"),
        extra_bytes=value("extra_bytes"),
        flop=value("flop"),
        bytes=value("bytes"),
        share_product=value("share_product"),
        ridge=product / copy if product and copy else None,
    )


def latest(points: Iterable[Point]) -> dict[tuple[str, int, str], dict[str, Point]]:
    """For each case the timed rivals by name, all from the latest run that timed at least two."""
    runs: dict[tuple[str, int, str], dict[str, dict[str, Point]]] = {}
    for point in points:
        if point.ms is not None:
            runs.setdefault(point.case, {}).setdefault(point.date, {})[point.rival] = point
    compared = {}
    for case, by_date in sorted(runs.items(), key=lambda item: _order(item[1])):
        several = [date for date, rivals in by_date.items() if len(rivals) > 1]
        if several:
            compared[case] = by_date[max(several)]
    return compared


def _order(by_date: dict[str, dict[str, Point]]) -> tuple[int, int]:
    point = next(iter(next(iter(by_date.values())).values()))
    return point.C, point.B


def curves(points: Iterable[Point], batch: int, mode: str) -> dict[str, list[Point]]:
    """For each rival its rows ordered by C, from the latest run with at least two sizes at this batch and mode."""
    runs: dict[str, list[Point]] = {}
    for point in points:
        if (point.B, point.mode) == (batch, mode) and (point.ms is not None or point.status != "ok"):
            runs.setdefault(point.date, []).append(point)
    dates = [date for date, rows in runs.items() if len({row.C for row in rows}) > 1]
    rivals: dict[str, list[Point]] = {}
    for point in sorted(runs[max(dates)], key=lambda row: row.C) if dates else ():
        rivals.setdefault(point.rival, []).append(point)
    return rivals


# ---- the figures -----------------------------------------------------------------------------------------------------


def draw_speedup(points: Sequence[Point], title: str) -> Any | None:
    """Bars by C and B, one panel per mode; None if no case has both the published form and another rival."""
    panels: dict[str, list[tuple[str, dict[str, float]]]] = {}
    for (_, batch, mode), rivals in latest(points).items():
        base = next((rivals[name] for name in BASELINES if name in rivals), None)
        if base is None or base.ms is None:
            continue
        ratios = {name: base.ms / point.ms for name, point in rivals.items() if point.ms and name != base.rival}
        panels.setdefault(mode, []).append((f"C={base.C}\nB={batch}", ratios))
    if not panels:
        return None
    return _bars(
        panels, f"{title}: speed relative to the published form", "speed-up", lambda ratio: f"{ratio:.1f}", line=1.0
    )


def draw_latency(points: Sequence[Point], title: str) -> Any | None:
    """Milliseconds at B = 1 in inference, by C; None without such rows."""
    groups = [
        (f"C={next(iter(rivals.values())).C}", {name: point.ms for name, point in rivals.items() if point.ms})
        for (_, batch, mode), rivals in latest(points).items()
        if (batch, mode) == (1, "infer")
    ]
    if not groups:
        return None
    return _bars({"infer": groups}, f"{title}: one image through the head", "ms", _three_digits, log=True)


def draw_scaling(points: Sequence[Point], title: str, batch: int) -> Any | None:
    """Time and extra memory against C on logarithmic axes, one column per mode; None if no run has two sizes."""
    by_mode = {mode: rivals for mode in ("infer", "train") if (rivals := curves(points, batch, mode))}
    if not by_mode:
        return None
    figure = _figure(5.2 * len(by_mode) + 0.4, 7.2)
    measures: tuple[tuple[str, Callable[[Point], float | None]], ...] = (
        ("ms", lambda point: point.ms),
        ("extra memory, MB", lambda point: point.extra_bytes and point.extra_bytes / 1e6),
    )
    for row, (label, value) in enumerate(measures):
        for column, (mode, rivals) in enumerate(by_mode.items()):
            axes = figure.add_subplot(2, len(by_mode), row * len(by_mode) + column + 1)
            _curves(axes, rivals, value)
            axes.set_xlabel("classes C" if row else "")
            axes.set_ylabel(label)
            axes.set_title(mode if not row else "", loc="left", fontsize=10)
    figure.suptitle(
        f"{title}, B = {batch}: time and memory against the number of classes", x=0.01, ha="left", fontsize=12
    )
    return figure


def _curves(axes: Any, rivals: dict[str, list[Point]], value: Callable[[Point], float | None]) -> None:
    sizes = sorted({point.C for rows in rivals.values() for point in rows})
    stopped: list[tuple[int, str]] = []
    for name, rows in rivals.items():
        line = [(point.C, measured) for point in rows if (measured := value(point))]
        stopped += [(point.C, name) for point in rows if point.status == "out of memory"]
        if not line:
            continue
        slope = f"  C^{scaling.exponent(line):.2f}" if len(line) > 1 else ""
        style = {"linestyle": "--" if name == PRODUCTS else "-", "color": _colour(name)}
        axes.plot(*zip(*line, strict=True), marker="o", markersize=4, label=f"{name}{slope}", **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for place, (classes, name) in enumerate(stopped):
        axes.axvline(classes, color=_colour(name), linestyle=":", linewidth=1)
        axes.annotate(
            f"{name}: out of memory",
            (classes, 0.02 + 0.07 * place),
            xycoords=("data", "axes fraction"),
            ha="right",
            fontsize=7,
            color="#c62828",
        )
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=8)
    axes.minorticks_off()
    _clean(axes, "both")
    axes.legend(frameon=False, fontsize=8)


def draw_roofline(points: Sequence[Point], title: str) -> Any | None:
    """Share of the product rate against FLOP per byte relative to the ridge; None without measured ceilings."""
    shown = [p for rivals in latest(points).values() for p in rivals.values() if _on_roofline(p)]
    if not shown:
        return None
    figure = _figure(6.8, 5.0)
    axes = figure.add_subplot()
    places = [point.flop / point.bytes / point.ridge for point in shown]  # type: ignore[operator]
    low, high = min([0.2, *places]) / 1.5, max([5.0, *places]) * 1.5
    axes.plot([low, 1, high], [low, 1, 1], color="#20242a", linewidth=1.2)
    labelled: set[str] = set()
    for place, point in zip(places, shown, strict=True):
        axes.scatter(
            place,
            point.share_product,
            color=_colour(point.rival),
            marker="o" if point.mode == "infer" else "^",
            s=28,
            label=None if point.rival in labelled else point.rival,
        )
        labelled.add(point.rival)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte, relative to the machine's (product rate / copy rate)")
    axes.set_ylabel("share of the product rate")
    axes.set_title(f"{title}: counted work over time (circles infer, triangles train)", loc="left", fontsize=10)
    _clean(axes, "both")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _on_roofline(point: Point) -> bool:
    known = all((point.flop, point.bytes, point.share_product, point.ridge))
    return known and point.rival != PRODUCTS


def _bars(
    panels: dict[str, list[tuple[str, dict[str, float]]]],
    title: str,
    unit: str,
    form: Callable[[float], str],
    line: float | None = None,
    log: bool = False,
) -> Any:
    """Groups of bars, one panel per mode, each bar labelled with its value."""
    widest = max(len(groups) for groups in panels.values())
    names = [n for n in COLOURS if any(n in values for groups in panels.values() for _, values in groups)]
    names += sorted({n for groups in panels.values() for _, values in groups for n in values} - set(names))
    figure = _figure(max(6.4, 1.2 + widest * (0.34 * len(names) + 0.5)), 2.9 * len(panels) + 0.6)
    width = 0.86 / len(names)
    for number, (mode, groups) in enumerate(panels.items()):
        axes = figure.add_subplot(len(panels), 1, number + 1)
        for index, name in enumerate(names):
            here = [(place, values[name]) for place, (_, values) in enumerate(groups) if name in values]
            at = [place + (index - (len(names) - 1) / 2) * width for place, _ in here]
            bars = axes.bar(at, [value for _, value in here], width, color=_colour(name), label=name)
            axes.bar_label(bars, [form(value) for _, value in here], fontsize=7, padding=1)
        if line is not None:
            axes.axhline(line, color="#20242a", linewidth=0.8)
        axes.set_xticks(range(len(groups)), [label for label, _ in groups], fontsize=8)
        axes.set_ylabel(unit)
        if log:
            axes.set_yscale("log")
        axes.margins(y=0.14)
        _clean(axes, "y")
        axes.text(0.0, 1.02, mode, transform=axes.transAxes, fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.axes[0].legend(
        handles, labels, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, frameon=False, fontsize=8
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _clean(axes: Any, grid: str) -> None:
    axes.grid(axis=grid, color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _colour(name: str) -> str:
    return COLOURS.get(name, MUTED)


# ---- the command -----------------------------------------------------------------------------------------------------


def draw(path: Path, folder: Path) -> list[Path]:
    """Draw the figures of one results file for which it has rows; returns their files.

    Raises:
        ValueError: the file is not a results file.
    """
    written = []
    points = read(path)
    for dtype in dict.fromkeys(point.dtype for point in points):
        own = [point for point in points if point.dtype == dtype]
        title = f"{path.stem}, {dtype}"
        pictures = {
            "speedup": draw_speedup(own, title),
            "latency": draw_latency(own, title),
            "roofline": draw_roofline(own, title),
        }
        pictures |= {f"scaling-b{size}": draw_scaling(own, title, size) for size in sorted({p.B for p in own})}
        for kind, figure in pictures.items():
            if figure is not None:
                written.append(folder / f"{path.stem}-{dtype}-{kind}.png")
                save_figure(figure, written[-1])
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the figures of the results files of the command line, or of all results files.

    Raises:
        ValueError: there is no results file, or a file is not a results file.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="results files; default: all of benchmarks/results")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder; default: benchmarks/results")
    arguments = parser.parse_args(argv)
    files = arguments.files or sorted(RESULTS.glob("*.csv"))
    if not files:
        raise ValueError(f"no results file in {RESULTS}: run python -m benchmarks.run first")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for path in files:
        for picture in draw(path, arguments.output):
            print(picture)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"benchmarks.plot: {error}")
