"""Figures: the AP of every class beside a baseline's (Fig. 3 of the paper), and attention sheets (Fig. 4).

Figures are drawn through matplotlib's object interface and its Agg canvas: no window, no global state.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssgrl_fast._utils.checks import need, some
from ssgrl_fast._utils.escape import for_terminal
from ssgrl_fast._utils.files import replacing
from ssgrl_fast.inference.placement import Placement
from ssgrl_fast.labels.matrix import ABSENT, DIFFICULT, UNKNOWN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Sample", "ap_chart", "attention_sheet", "brightest", "new_figure", "overlay", "save_figure", "scale_colors"]
__all__ += ["shortened", "show_picture"]

MODEL, BASELINE, TRUE, OTHER, MUTED = "#1f5a94", "#b3bccb", "#c62828", "#5f7896", "#5a6270"
_PER_ROW = 40  # classes side by side in a bar chart
_STRIP = 256  # rows
SHEET_PIXELS = 512
"""The longer side of a photograph on an attention sheet, at most."""
_VALUES_UP_TO = 25  # classes with a number above each bar
_EXTENSIONS = (".png", ".pdf", ".svg", ".jpg")


@dataclass(frozen=True)
class Sample:
    """One row of an attention sheet.

    Attributes:
        image: [H, W, 3] uint8, the photograph at any size.
        probabilities: [C], 0 to 1.
        attention: [C, h, w], not negative.
        placement: where the cells of the attention lie on the image.
        targets: [C] in {1, 0, -1, -2} (present, only difficult objects, absent, unknown), or None if all are unknown.
        title: above the image, the file name for example.
    """

    image: NDArray[np.uint8]
    probabilities: NDArray[np.floating[Any]]
    attention: NDArray[np.floating[Any]]
    placement: Placement
    targets: NDArray[np.integer[Any]] | None = None
    title: str = ""


# ---- AP of every class -----------------------------------------------------------------------------------------------


def ap_chart(
    class_names: Sequence[str],
    ap: Sequence[float],
    *,
    baseline: Sequence[float] | None = None,
    labels: tuple[str, str] = ("SSGRL", "baseline"),
    title: str | None = None,
    note: str = "",
) -> Figure:
    """Bars of the AP of every class, the highest first, beside those of a baseline (Fig. 3 of the paper).

    Up to 25 classes carry numbers: the AP, or with a baseline the gap to it in points. The axis starts at a multiple of
    ten below the lowest value and says so where that is not zero. More than 40 classes take several rows.

    Args:
        class_names: C names.
        ap: C fractions; NaN for a class without positives, which gets no bar and is named below the chart.
        baseline: C fractions in the same order.
        labels: names of ap and of baseline in the legend.
        title: title of the chart; None: "Average precision of each class".
        note: small text below the chart, for example how the AP was measured.

    Raises:
        ValueError: lengths differ, no class, or a value outside 0 … 1.
        ImportError: matplotlib is missing.
    """
    class_names = [*map(for_terminal, class_names)]  # no font has control codes, no XML of an SVG
    values = _fractions("ap", ap, len(class_names))
    other = None if baseline is None else _fractions("baseline", baseline, len(class_names))
    empty = [index for index, value in enumerate(values) if math.isnan(value)]
    order = sorted(set(range(len(values))) - set(empty), key=lambda index: (-values[index], index)) or empty
    rows = [order[start : start + _PER_ROW] for start in range(0, len(order), _PER_ROW)]
    longest = max(len(name) for name in class_names)
    slant = len(rows[0]) > 12 or longest * len(rows[0]) > 110
    height = 2.7 + (0.075 * min(longest, 24) if slant else 0.15)
    width = max(5.6, min(15.0, 1.4 + 0.62 * len(rows[0])))
    figure = new_figure(width, height * len(rows) + 0.6)
    shown = np.concatenate([values, *([] if other is None else [other])])
    bottom = _axis_start(shown)
    for number, part in enumerate(rows):
        axes = figure.add_subplot(len(rows), 1, number + 1)
        _bars(axes, values[part], None if other is None else other[part], labels, bottom, len(order) <= _VALUES_UP_TO)
        names = [class_names[index] for index in part]
        axes.set_xticks(range(len(part)), names, rotation=55 if slant else 0, ha="right" if slant else "center")
        if slant:
            for text in axes.get_xticklabels():
                text.set_rotation_mode("anchor")
        axes.set_xlim(-0.6, len(rows[0]) - 0.4)
    _legend(figure.axes[0], labels, values, other, title)
    left_out = f"{len(empty)} of {len(values)} classes have no positives: {some(class_names[i] for i in empty)}"
    notes = [*([note] if note else []), *([left_out] if empty else [])]
    if notes:
        figure.supxlabel(textwrap.fill("; ".join(notes), int(14 * width)), fontsize=8, color=MUTED)
    return figure


def _bars(
    axes: Axes,
    values: NDArray[np.float64],
    other: NDArray[np.float64] | None,
    labels: tuple[str, str],
    bottom: float,
    numbers: bool,
) -> None:
    at = np.arange(len(values))
    width = 0.66 if other is None else 0.38
    shift = 0.0 if other is None else width / 2
    if other is not None:
        axes.bar(at - shift, 100 * other - bottom, width, bottom=bottom, color=BASELINE, label=labels[1])
    axes.bar(at + shift, 100 * values - bottom, width, bottom=bottom, color=MODEL, label=labels[0])
    axes.set_ylim(bottom, 100 + 0.07 * (100 - bottom))
    axes.set_ylabel("AP (%)" + (f", axis from {bottom:g}" if bottom else ""))
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    if not numbers:
        return
    for place, value in enumerate(values):
        if math.isnan(value):
            continue
        rival = math.nan if other is None else other[place]
        text = f"{100 * value:.1f}" if math.isnan(rival) else f"{100 * (value - rival):+.1f}"
        top = 100 * max(value, value if math.isnan(rival) else rival)
        color = TRUE if not math.isnan(rival) and value < rival else "#20242a"
        axes.annotate(
            text, (place, top), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8, color=color
        )


def _legend(
    axes: Axes,
    labels: tuple[str, str],
    values: NDArray[np.float64],
    other: NDArray[np.float64] | None,
    title: str | None,
) -> None:
    """The title and below it one entry per bar colour, above the first row."""
    from matplotlib.patches import Patch

    known = [(label, data) for label, data in zip(labels, (values, other), strict=True) if data is not None]
    means = [
        f"{label}: mAP undefined" if np.isnan(data).all() else f"{label}: mAP {100 * np.nanmean(data):.1f} %"
        for label, data in known
    ]
    handles = [Patch(color=color) for color in (MODEL, BASELINE)[: len(means)]]
    axes.legend(
        handles,
        means,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=2,
        borderaxespad=0.2,
        frameon=False,
        fontsize=9,
    )
    axes.set_title("Average precision of each class" if title is None else title, loc="left", pad=24, fontsize=12)


def _axis_start(values: NDArray[np.float64]) -> float:
    """The multiple of ten below all values that leaves each bar a tenth of the axis; 0 where any is under 50 %."""
    lowest = 100 * float(np.nanmin(values)) if not np.isnan(values).all() else 0.0
    if lowest < 50:
        return 0.0
    start = min(90, 10 * math.floor(lowest / 10))
    return float(start if lowest - start >= 0.1 * (100 - start) else max(0, start - 10))


def _fractions(name: str, values: Sequence[float], count: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count,) or not count:
        raise ValueError(
            f"ap_chart: {name} must be {max(count, 1)} values, one per class, got shape {list(array.shape)}"
        )
    known = array[~np.isnan(array)]
    if ((known < 0) | (known > 1)).any():
        raise ValueError(f"ap_chart: {name} must be fractions of 1, got values from {known.min():g} to {known.max():g}")
    return array


# ---- attention -------------------------------------------------------------------------------------------------------


def overlay(image: NDArray[np.uint8], attention: NDArray[np.floating[Any]], placement: Placement) -> NDArray[np.uint8]:
    """Lay one attention map over its image: coloured where the attention is high, grey where it is low.

    Args:
        image: [H, W, 3] uint8.
        attention: [h, w], not negative; divided by :func:`brightest`.
        placement: where its cells lie on the image; linear between and beyond them, grey where the network saw nothing.

    Returns:
        [H, W, 3] uint8.

    Raises:
        ValueError: other shapes, or values that are negative or not finite; a placement of another number of cells.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"overlay: image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if attention.ndim != 2 or not attention.size or not np.isfinite(attention).all() or attention.min() < 0:
        raise ValueError(f"overlay: attention must be [h, w], finite and not negative, got {list(attention.shape)}")
    if attention.shape != (cells := (len(placement.y), len(placement.x))):
        raise ValueError(f"overlay: placement is of {list(cells)} cells, attention of {list(attention.shape)}")
    smooth = placement.spread(attention / brightest(attention), *image.shape[:2]).clip(0, 1)
    blended = np.empty_like(image)
    for start in range(0, len(image), _STRIP):  # a photograph of 24 megapixels takes gigabytes at once
        part = slice(start, start + _STRIP)
        blended[part] = _coloured(image[part], smooth[part])
    return blended


def brightest(attention: NDArray[np.floating[Any]]) -> float:
    """The value that :func:`overlay` draws brightest: the map's highest, or three times its mean where that is higher,
    so that an even map is dim everywhere."""
    return max(float(attention.max()), 3 * float(attention.mean()), 1e-30)


def scale_colors(count: int = 9) -> list[str]:
    """The colours of :func:`overlay` over middle grey from no attention to the brightest, ``count`` times "#rrggbb"."""
    grey = np.full((1, count, 3), 128, dtype=np.uint8)
    strip = _coloured(grey, np.linspace(0, 1, count, dtype=np.float32)[None])[0]
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in strip.tolist()]


def _coloured(image: NDArray[np.uint8], scaled: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """An image [H, W, 3] under colours for values [H, W] from 0 to 1."""
    colors = need("matplotlib", "train", "ssgrl_fast.inference.figures").colormaps["inferno"]
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    base = 0.35 * image + 0.35 * grey[..., None]
    heat = 255 * colors(0.25 + 0.7 * scaled)[..., :3]
    share = 0.85 * scaled[..., None]
    blended: NDArray[np.uint8] = ((1 - share) * base + share * heat).round().clip(0, 255).astype(np.uint8)
    return blended


def attention_sheet(
    samples: Sequence[Sample], class_names: Sequence[str], *, maps: int = 3, labels: int = 10, title: str | None = None
) -> Figure:
    """One row per image: the image, the attention of its most probable classes, its label distribution (Fig. 4).

    True labels are red; a class that has only difficult objects is marked. With more than ``labels`` classes the most
    probable ones are shown, and every true label beside them.

    Args:
        samples: the rows, at least one.
        class_names: C names.
        maps: attention maps per row.
        labels: number of classes in a distribution.
        title: title of the sheet.

    Raises:
        ValueError: no sample, or one whose arrays do not have C classes.
        ImportError: matplotlib is missing.
    """
    if not samples or maps < 1 or labels < 1:
        raise ValueError(f"attention_sheet: needs samples, maps and labels, got {len(samples)}, {maps} and {labels}")
    count = len(class_names)
    for index, sample in enumerate(samples):
        shapes = [sample.probabilities.shape, sample.attention.shape[:1]]
        if any(shape != (count,) for shape in shapes) or (
            sample.targets is not None and sample.targets.shape != (count,)
        ):
            raise ValueError(f"attention_sheet: sample {index} must have {count} classes, as many as class_names")
    maps = min(maps, count)
    bars = max(len(_shown_labels(sample, labels)) for sample in samples)
    height = max(1.95, 0.17 * bars + 0.65)
    figure = new_figure(2.0 * (maps + 1) + 3.1, height * len(samples) + (0.75 if title else 0.45))
    grid = figure.add_gridspec(len(samples), maps + 2, width_ratios=[*[1.0] * (maps + 1), 1.15])
    for row, sample in enumerate(samples):
        show_picture(figure.add_subplot(grid[row, 0]), sample.image, shortened(sample.title, 26))
        best = np.argsort(-sample.probabilities, kind="stable")[:maps]
        for column, index in enumerate(best):
            text = f"{shortened(class_names[index], 18)}  {sample.probabilities[index]:.2f}"
            picture = overlay(sample.image, sample.attention[index], sample.placement)
            show_picture(
                figure.add_subplot(grid[row, column + 1]), picture, text, _label_color(sample, int(index), "black")
            )
        _distribution(figure.add_subplot(grid[row, maps + 1]), sample, class_names, labels, row == len(samples) - 1)
    if any(sample.targets is not None for sample in samples):
        figure.supxlabel("red: true labels", fontsize=9, color=TRUE, x=0.99, ha="right")
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def show_picture(axes: Axes, picture: NDArray[np.uint8], text: str, color: str = "black") -> None:
    """A picture without ticks or frame under a line of text."""
    axes.imshow(picture, interpolation="bilinear" if min(picture.shape[:2]) < 160 else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_anchor("N")
    axes.set_title(text, fontsize=9, color=color, pad=4)


def _distribution(axes: Axes, sample: Sample, class_names: Sequence[str], labels: int, last: bool) -> None:
    shown = _shown_labels(sample, labels)
    values = sample.probabilities[shown]
    colors = [_label_color(sample, index, OTHER) for index in shown]
    at = np.arange(len(shown))
    axes.barh(at, values, 0.68, color=colors)
    codes = sample.targets if sample.targets is not None else np.full(len(class_names), ABSENT)
    marks = {DIFFICULT: " (difficult)", UNKNOWN: " (unknown)"}
    names = [shortened(class_names[index], 18) + marks.get(int(codes[index]), "") for index in shown]
    axes.set_yticks(at, names, fontsize=8)
    for text, index in zip(axes.get_yticklabels(), shown, strict=True):
        text.set_color(_label_color(sample, index, "black"))
    for place, value in zip(at, values, strict=True):
        axes.annotate(f"{value:.2f}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.14)
    axes.set_xticks([0, 0.5, 1])
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7, labelbottom=last)
    axes.spines[["top", "right"]].set_visible(False)
    if last:
        axes.set_xlabel("probability", fontsize=8)


def _shown_labels(sample: Sample, labels: int) -> list[int]:
    """The most probable classes and, beyond them, the true ones; the most probable first."""
    order = [int(index) for index in np.argsort(-sample.probabilities, kind="stable")]
    true = set() if sample.targets is None else set(np.flatnonzero(sample.targets == 1).tolist())
    return [index for place, index in enumerate(order) if place < labels or index in true]


def _label_color(sample: Sample, index: int, otherwise: str) -> str:
    return TRUE if sample.targets is not None and sample.targets[index] == 1 else otherwise


def shortened(text: str, length: int) -> str:
    """A name of at most ``length`` characters without control codes."""
    text = for_terminal(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


# ---- files -----------------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches with its own Agg canvas."""
    need("matplotlib", "train", "ssgrl_fast.inference.figures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from ssgrl_fast.inference.plain_figure import PlainFigure

    figure = PlainFigure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure; its folder is created if needed.

    Raises:
        ValueError: the name does not end in .png, .pdf, .svg or .jpg.
        OSError: the file could not be written; an earlier file is unchanged.
    """
    target = Path(path)
    if target.suffix.lower() not in _EXTENSIONS:
        raise ValueError(f"save_figure: {target} must end in {', '.join(_EXTENSIONS)}")
    with replacing(target) as part:
        figure.savefig(part, format=target.suffix[1:].lower())
    return target
