"""Means over classes and their bootstrap intervals, against sums by hand and a loop over draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ssgrl_fast.metrics.pairs import PairTable

NAMES = ["cat", "dog|wolf", "fish"]


def make_table(**values: list[float]) -> PairTable:
    rows, columns = np.array([0, 0, 3, 5]), np.array([0, 1, 0, 1])
    return PairTable(NAMES, rows, columns, {name: np.array(each) for name, each in values.items()})


def test_means_are_of_classes_first_and_leave_out_what_is_not_known() -> None:
    table = make_table(a=[1.0, 0.5, 0.0, math.nan], b=[0.0, 0.25, 0.5, 1.0])
    assert table.class_means("a").tolist() == pytest.approx([0.5, 0.5, math.nan], nan_ok=True)
    assert table.mean("b") == pytest.approx((0.25 + 0.625) / 2)
    assert table.mean("a", "b") == pytest.approx(((1.0 - 0.5) / 2 + 0.25) / 2)  # of the pairs that have both
    empty = make_table(a=[math.nan] * 4)
    assert math.isnan(empty.mean("a")) and all(map(math.isnan, empty.interval("a")))


def test_the_interval_draws_images_not_pairs() -> None:
    table = make_table(a=[1.0, 0.5, 0.0, math.nan], b=[0.0, 0.25, 0.5, 1.0])
    rng, means = np.random.default_rng(7), []
    for times in rng.multinomial(3, [1 / 3] * 3, 100):
        drawn = [
            pair
            for image, count in zip((0, 3, 5), times, strict=True)
            for pair in range(4)
            for _ in range(count)
            if table.rows[pair] == image
        ]
        of_class = [[table.values["b"][pair] for pair in drawn if table.columns[pair] == column] for column in (0, 1)]
        means.append(np.mean([np.mean(each) for each in of_class if each]))
    assert table.interval("b", draws=100, seed=7) == pytest.approx(np.percentile(means, [2.5, 97.5]))
    one = PairTable(NAMES, np.array([4, 4]), np.array([0, 2]), {"a": np.array([0.25, 0.75])})
    assert one.interval("a") == (0.5, 0.5)


def test_the_tables_name_what_they_hold() -> None:
    table = make_table(a=[1.0, 0.5, 0.0, math.nan], b=[0.0, 0.25, 0.5, 1.0])
    text = table.to_markdown({"a": "ours", "b": "chance"}, [("a", "b")])
    assert "| dog\\|wolf | 2 | 50.00 | 62.50 |" in text and "fish" not in text
    assert "| mean over classes | 4 | 50.00 | 43.75 |" in text and "| ours - chance | +25.0 |" in text
    content = table.to_dict([("a", "b")])
    assert content["pairs"] == {"cat": 2, "dog|wolf": 2, "fish": 0}
    assert content["mean over classes, 95 % interval"]["a - b"] == [table.mean("a", "b"), *table.interval("a", "b")]
