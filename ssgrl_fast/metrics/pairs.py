"""Figures of pairs, each an image and one of its labels: the mean of each class, the mean over classes, its interval.

P pairs, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssgrl_fast._utils.escape import for_markdown
from ssgrl_fast.metrics.report import percent

__all__ = ["PairTable"]

_AT_ONCE = 100  # draws


@dataclass(frozen=True)
class PairTable:
    """What was measured on pairs of an image and a class.

    Attributes:
        class_names: C names.
        rows, columns: int64 [P], the image and the class of each pair.
        values: float64 [P] by name, fractions; NaN where a pair has no value.
    """

    class_names: Sequence[str]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float64]]

    def class_means(self, name: str, less: str | None = None) -> NDArray[np.float64]:
        """[C]: the mean over each class's pairs of a value, or of its difference to another; NaN without any."""
        ones = np.ones((1, len(self.rows)))
        means: NDArray[np.float64] = self._class_means(self._of(name, less), ones)[0]
        return means

    def mean(self, name: str, less: str | None = None) -> float:
        """The mean of :meth:`class_means` over the classes that have one; NaN without any."""
        return float(_mean(self.class_means(name, less)[None])[0])

    def interval(self, name: str, less: str | None = None, *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """The middle 95 % of :meth:`mean` over bootstrap draws of as many images with replacement; a difference is
        paired, and a class without a pair in a draw is left out of that draw."""
        values = self._of(name, less)
        images, position = np.unique(self.rows, return_inverse=True)
        if np.isnan(values).all():
            return float("nan"), float("nan")
        rng, drawn = np.random.default_rng(seed), []
        for start in range(0, draws, _AT_ONCE):
            times = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), min(_AT_ONCE, draws - start))
            drawn.append(_mean(self._class_means(values, times[:, position].astype(float))))
        low, high = np.nanpercentile(np.concatenate(drawn), [2.5, 97.5])
        return float(low), float(high)

    def to_dict(self, differences: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Plain values for JSON: pairs and means of each class, and [mean, low, high] of every value and difference."""
        counts = np.bincount(self.columns, minlength=len(self.class_names)).tolist()
        means = {name: self.class_means(name).tolist() for name in self.values}
        shown = [*((name, None) for name in self.values), *differences]
        return {
            "unit": "fraction",
            "pairs": dict(zip(self.class_names, counts, strict=True)),
            "classes": {name: dict(zip(self.class_names, each, strict=True)) for name, each in means.items()},
            "mean over classes, 95 % interval": {
                name if less is None else f"{name} - {less}": [self.mean(name, less), *self.interval(name, less)]
                for name, less in shown
            },
        }

    def to_markdown(self, titles: Mapping[str, str], differences: Sequence[tuple[str, str]]) -> str:
        """A row for each class that has pairs, their mean, and the differences with intervals, in per cent.

        Args:
            titles: names of values to show, and their headings.
            differences: pairs of values; the second is subtracted.
        """
        lines = [f"| class | pairs | {' | '.join(titles.values())} |", "|---|" + "---:|" * (len(titles) + 1)]
        counts = np.bincount(self.columns, minlength=len(self.class_names))
        means = [self.class_means(name) for name in titles]
        for index in np.flatnonzero(counts).tolist():
            cells = [
                for_markdown(self.class_names[index]),
                str(counts[index]),
                *(percent(each[index]) for each in means),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        whole = [percent(self.mean(name)) for name in titles]
        lines += [f"| mean over classes | {len(self.rows)} | {' | '.join(whole)} |", ""]
        lines += ["| difference, mean over classes | points | 95 % interval |", "|---|---:|---:|"]
        for name, less in differences:
            low, high = self.interval(name, less)
            mean = self.mean(name, less)
            lines.append(
                f"| {titles[name]} - {titles[less]} | {100 * mean:+.1f} | {100 * low:+.1f} … {100 * high:+.1f} |"
            )
        return "\n".join([*lines, ""])

    def _of(self, name: str, less: str | None) -> NDArray[np.float64]:
        return self.values[name] if less is None else self.values[name] - self.values[less]

    def _class_means(self, values: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
        """[R, C] for pairs that count ``times`` [R, P] times."""
        known = ~np.isnan(values)
        member = (self.columns[:, None] == np.arange(len(self.class_names))) & known[:, None]  # [P, C]
        counts = times @ member
        with np.errstate(invalid="ignore"):  # 0 / 0
            means: NDArray[np.float64] = ((times * np.where(known, values, 0)) @ member) / counts
        return means


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R] of [R, C] without the NaN."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = np.where(known, values, 0).sum(1) / known.sum(1)
    return mean
