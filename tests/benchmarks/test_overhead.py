"""benchmarks.overhead: the shortest program computes what the head computes, and the figures that do not vary."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from benchmarks import overhead
from ssgrl_fast.backends import extension

pytestmark = pytest.mark.skipif(extension.library() is not None, reason=str(extension.library()))


def test_at_most_seven_frames_from_a_forward_to_its_operator() -> None:
    frames = overhead.count_frames(overhead.make_steps()["infer"])
    assert set(frames) == {"functions", "SemanticDecoupling", "GraphPropagation", "LabelClassifier"}
    assert all(2 < depth <= 7 for name, depth in frames.items() if name != "functions")


def test_it_prints_both_modes(capsys: pytest.CaptureFixture[str]) -> None:
    assert overhead.main(["--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["infer", "train"]
    assert all("shortest" in line and "frames" in line for line in lines[:2])
    if find_spec("triton"):
        functions = {
            line.partition(" here:")[0]: int(line.partition("'functions': ")[2].split("}")[0].split(",")[0])
            for line in lines[2:]
            if "frames" in line
        }
        assert list(functions) == list(overhead.TRITON)
        assert functions["triton launches"] < functions["triton launches by Triton"] / 2
