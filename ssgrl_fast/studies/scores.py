"""How the studies turn a validation curve into a score, and the results of several seeds into one figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Log = Callable[[str], None]
"""A function that takes a line of progress, such as ``print``."""


def final(curve: Sequence[float]) -> float:
    """The mean of the last three values, or of all if there are fewer."""
    return float(np.mean(curve[-3:]))


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def spread(values: Sequence[float]) -> str:
    """Mean ± sample deviation of fractions, in per cent; the mean alone for a single value."""
    error = deviation(values)
    return f"{100 * np.mean(values):.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def percentages(values: Sequence[float]) -> str:
    """Fractions in per cent, separated by blanks."""
    return " ".join(f"{100 * value:.1f}" for value in values)
