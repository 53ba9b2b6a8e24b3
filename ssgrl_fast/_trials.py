"""What ``compare`` and ``ablate`` share: how a curve becomes a score, and seeds become one figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Say = Callable[[str], None]


def final(curve: Sequence[float]) -> float:
    """The mean of the last three values, or of all where there are fewer."""
    return float(np.mean(curve[-3:]))


def deviation(values: Sequence[float]) -> float | None:
    """The sample deviation; None of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def spread(values: Sequence[float]) -> str:
    """Mean ± sample deviation of fractions in per cent; the mean alone of one value."""
    found = deviation(values)
    return f"{100 * np.mean(values):.1f}" + ("" if found is None else f" ± {100 * found:.1f}")
