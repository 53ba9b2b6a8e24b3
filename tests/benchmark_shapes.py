"""Two small shapes for the benchmarks' tests, one on each side of identity 4's threshold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import registry
from benchmarks.registry import Shape

TINY = Shape("tiny", 6, locations=9, channels=32, word_dim=10, joint_dim=16, score_dim=12, out_dim=24)
LOW = replace(TINY, name="tiny-low", classes=40)


def put(monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the registry, beside its own."""
    monkeypatch.setitem(registry.SHAPES, "tiny", TINY)
    monkeypatch.setitem(registry.SHAPES, "tiny-low", LOW)
