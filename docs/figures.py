"""Draws the diagrams of docs/kernels.md: `python docs/figures.py [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

BLUE, GREEN, RED, GREY, INK = "#1f5a94", "#2e7d5b", "#c62828", "#8a94a3", "#20242a"
D, K, L = 2048, 1024, 81


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """A rounded box with text in its centre."""
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08", fc=color + "18", ec=color)
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.5, color=INK, linespacing=1.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """An arrow, with small text above its middle."""
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    )
    if text:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.09)
        axes.text(*middle, text, ha="center", va="bottom", fontsize=7.5, color=INK)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure without axes whose coordinates are inches."""
    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return figure, axes


def head() -> Figure:
    """The three operations and the tensors that pass between them."""
    figure, axes = canvas(9.2, 2.5)
    box(axes, 0.1, 1.45, 1.25, 0.8, "feature map\n[B, L, D]", GREY)
    box(axes, 0.1, 0.25, 1.25, 0.8, "word vectors\n[C, S]", GREY)
    box(axes, 2.3, 0.85, 1.6, 0.8, "semantic_attention\neq. 3–6", BLUE)
    box(axes, 4.9, 0.85, 1.6, 0.8, "graph_propagation\neq. 7–9, T steps", BLUE)
    box(axes, 7.2, 0.85, 1.1, 0.8, "label_scores\neq. 10", BLUE)
    arrow(axes, (1.35, 1.85), (2.3, 1.45), "u = F·U, F")
    arrow(axes, (1.35, 0.65), (2.3, 1.05), "v = X·V")
    arrow(axes, (3.9, 1.25), (4.9, 1.25), "h₀ [B, C, D]")
    arrow(axes, (6.5, 1.25), (7.2, 1.25), "h_T")
    arrow(axes, (8.3, 1.25), (9.1, 1.25), "logits\n[B, C]")
    axes.plot([3.1, 3.1, 7.75], [1.65, 2.15, 2.15], color=GREY, lw=1.2)
    arrow(axes, (5.7, 2.15), (5.7, 1.65))
    arrow(axes, (7.75, 2.15), (7.75, 1.65))
    axes.text(
        4.4, 2.19, "the factors of h₀: attention [B, C, L] and F", fontsize=7.5, ha="center", va="bottom", color=INK
    )
    box(axes, 4.9, 0.1, 1.6, 0.42, "graph A [C, C]", GREY)
    arrow(axes, (5.7, 0.52), (5.7, 0.85))
    return figure


def step() -> Figure:
    """One propagation step as two products over one buffer (identity 3)."""
    figure, axes = canvas(7.6, 3.0)
    blocks = (("h", GREY), ("A·h", GREEN), ("Aᵀ·h", GREEN), ("r⊙h", RED))
    for index, (text, color) in enumerate(blocks):
        axes.add_patch(Rectangle((0.9 + 1.45 * index, 1.2), 1.45, 0.7, fc=color + "18", ec=color))
        axes.text(0.9 + 1.45 * (index + 0.5), 1.55, text, ha="center", va="center", fontsize=10, color=INK)
    axes.text(0.8, 1.55, "X", ha="right", va="center", fontsize=11, color=INK)
    axes.text(6.8, 1.55, "B·C rows", va="center", fontsize=8, color=INK)
    for start, y, text in ((0.9, 2.25, "first product: z and r"), (2.35, 0.85, "second product: the candidate")):
        axes.annotate("", (start + 4.35, y), (start, y), arrowprops={"arrowstyle": "|-|", "color": BLUE, "lw": 1.2})
        above = y > 1.5
        axes.text(
            start + 2.17,
            y + (0.1 if above else -0.1),
            text,
            ha="center",
            va="bottom" if above else "top",
            fontsize=9,
            color=BLUE,
        )
    axes.annotate(
        "",
        (6.4, 1.9),
        (4.5, 2.6),
        arrowprops={"arrowstyle": "-|>", "color": RED, "lw": 1.2, "connectionstyle": "arc3,rad=-0.3"},
    )
    axes.text(6.35, 2.45, "written by the gates", fontsize=8, color=RED, ha="center")
    axes.text(3.8, 0.3, "h ← (1 − z)⊙h + z⊙tanh(candidate)", fontsize=9, ha="center", color=INK)
    return figure


def products(classes: np.ndarray, locations: int, channels: int = D) -> np.ndarray:
    """Units of 2·C·D² FLOP per image of the head's products at T = 3, with the cheaper form of the first step."""
    pays = locations < classes * channels / (classes + channels)
    return np.where(pays, 20 + 9 * locations / classes, 29.0)


def units() -> Figure:
    """FLOP with the low-rank first step (identity 4), against the number of classes."""
    figure = Figure(figsize=(6.2, 2.7), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    classes = np.unique(np.geomspace(20, 2000, 400).round()).astype(int)
    for locations, color in ((49, GREEN), (81, BLUE)):
        axes.plot(classes, products(classes, locations), color=color, label=f"L = {locations}")
    axes.axhline(29, color=GREY, lw=1, ls="--")
    axes.axhline(20, color=GREY, lw=1, ls=":")
    axes.set_xscale("log")
    axes.set_ylim(18, 30.5)
    axes.set_xticks([20, 50, 80, 200, 500, 1000, 2000], ["20", "50", "80", "200", "500", "1,000", "2,000"])
    axes.minorticks_off()
    axes.set_xlabel("classes C")
    axes.set_ylabel("units of 2·C·D² FLOP per image")
    axes.legend(frameon=False, loc="center right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def published_bytes(classes: int) -> int:
    """Bytes per image of the published form's two largest tensors, in float32: C·L·K joint and C·L·D repeated."""
    return 4 * L * classes * (K + D)


def fused_bytes(classes: int) -> int:
    """Bytes per image of the tensors that replace them: the attention C·L and the pooled features C·D."""
    return 4 * classes * (L + D)


def tensors() -> Figure:
    """Memory of the tensors that are never stored, and of those that replace them."""
    figure = Figure(figsize=(6.2, 2.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    sets = (("VOC\nC = 20", 20), ("COCO\nC = 80", 80), ("VG-500\nC = 500", 500))
    for shift, count, color, label in (
        (-0.19, published_bytes, GREY, "published: C·L·K and C·L·D"),
        (0.19, fused_bytes, BLUE, "here: C·L and C·D"),
    ):
        values = [count(classes) / 1e6 for _, classes in sets]
        bars = axes.bar(np.arange(3) + shift, values, 0.36, color=color, label=label)
        axes.bar_label(bars, [f"{value:.3g} MB" for value in values], fontsize=8, padding=2)
    axes.set_yscale("log")
    axes.set_ylim(0.05, 3000)
    axes.set_xticks(range(3), [name for name, _ in sets])
    axes.set_ylabel("MB per image, float32")
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES = {"head": head, "step": step, "units": units, "tensors": tensors}


def main(folder: Path) -> None:
    """Write each figure as SVG; the same matplotlib writes the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "ssgrl_fast", "svg.fonttype": "none", "font.family": "sans-serif"}):
        for name, draw in FIGURES.items():
            draw().savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
