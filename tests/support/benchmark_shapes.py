"""Two small shapes for the benchmarks' tests, one on each side of identity 4's threshold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.harness import cases
from benchmarks.harness.cases import Shape

TINY = Shape("tiny", 6, locations=9, channels=32, word_dim=10, joint_dim=16, score_dim=12, out_dim=24)
LOW = replace(TINY, name="tiny-low", classes=40)


def put(monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the registry, beside its own."""
    monkeypatch.setitem(cases.SHAPES, "tiny", TINY)
    monkeypatch.setitem(cases.SHAPES, "tiny-low", LOW)
