"""Time and memory against the number of classes: the sizes for each device, and the fitted exponents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from benchmarks.harness.report import PRODUCTS, Row
from ssgrl_fast.backends import explain, names


def sizes(device: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Shapes and batches; identity 4 is used at all of them, so that a single form is fitted."""
    if device == "cuda":
        return ("vg500", "c1000", "c2000", "c5000", "openimages"), (1, 16)
    return ("vg500", "c1000", "c2000"), (1,)


def rivals(device: str) -> tuple[str, ...]:
    """The published form, the fastest backend and the products alone; in short runs also the other rivals."""
    able = {row.backend for row in explain(device) if row.usable}
    backends = [name for name in reversed(names()) if name in able]
    if device == "cpu":
        return ("published", backends[-1], PRODUCTS)
    return ("published", "handwritten", *backends, PRODUCTS)


def exponents(found: Sequence[Row]) -> list[str]:
    """One line per rival, mode and batch: the exponent of C in the median time and in the extra memory.

    Least squares on the logarithms over all sizes; in brackets the slopes between neighbouring sizes.
    """
    lines = []
    for key in dict.fromkeys((row.operation, row.mode, row.dtype, row.B, row.rival) for row in found):
        operation, mode, dtype, batch, rival = key
        mine = sorted(
            (row for row in found if (row.operation, row.mode, row.dtype, row.B, row.rival) == key),
            key=lambda row: row.C,
        )
        parts = []
        for what, value in _MEASURES:
            points = [(row.C, measured) for row in mine if (measured := value(row))]
            if len({classes for classes, _ in points}) > 1:
                between = ", ".join(f"{slope:.2f}" for slope in slopes(points))
                parts.append(f"{what} ~ C^{exponent(points):.2f} ({between})")
        stopped = [f"C = {row.C}: {row.status}" for row in mine if row.status != "ok"]
        if parts or stopped:
            where = f"{operation} {mode}, {dtype}, B={batch}, C = {', '.join(str(row.C) for row in mine)}"
            lines.append(f"{rival}: {'; '.join([*parts, *stopped])} [{where}]")
    return lines


_MEASURES: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
    ("time", lambda row: row.p50_ms),
    ("extra memory", lambda row: row.extra_bytes),
)


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The slope of log y against log x by least squares.

    Raises:
        ValueError: fewer than two different x, or a value that is not positive.
    """
    if len({x for x, _ in points}) < 2 or min(min(point) for point in points) <= 0:
        raise ValueError(f"exponent: needs two different sizes and positive values, got {list(points)}")
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def slopes(points: Sequence[tuple[float, float]]) -> Iterator[float]:
    """The slope between each two neighbouring sizes."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 != x1:
            yield math.log(y1 / y0) / math.log(x1 / x0)
