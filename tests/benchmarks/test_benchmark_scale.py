"""The benchmark of the throughput model: its bound, and a small run."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")
pytest.importorskip("PIL", reason="photographs need Pillow: pip install 'ssgrl_fast[train]'")

from benchmarks import scale

TERMS = {"read": 0.001, "decode": 0.009, "network": 0.036, "write": 0.004}


@pytest.mark.parametrize(
    ("processes", "cores", "rate"),
    [
        (1, 2, 25),  # one process computes the network: 1 / 0.040
        (2, 2, 40),  # all cores are busy: 2 / 0.050
        (4, 2, 40),
        (1, 64, 25),
        (32, 64, 800),
    ],
)
def test_the_smallest_term_binds(processes: int, cores: int, rate: float) -> None:
    assert scale.predicted(TERMS, processes, cores) == pytest.approx(rate)
    slow = {**TERMS, "decode": 0.999}
    assert scale.predicted(slow, 1, 8) == pytest.approx(8 / 1.04), "reading binds"


@pytest.mark.thorough
def test_a_small_run_prints_terms_and_rates(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--net", "small-cnn", "--image", "32", "--shape", "voc", "--images", "400", "--rounds", "1"]
    assert scale.main([*small, "--processes", "1"]) == 0
    printed = capsys.readouterr().out
    terms = re.search(r"read ([\d.]+), decode ([\d.]+), network ([\d.]+), write ([\d.]+); sum ([\d.]+)", printed)
    assert terms is not None
    *parts, total = map(float, terms.groups())
    assert sum(parts) == pytest.approx(total, abs=0.03) and parts[1] > parts[0]
    assert re.search(r"local\s+│ 1 ", printed)
