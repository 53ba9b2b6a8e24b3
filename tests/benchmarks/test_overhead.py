"""benchmarks.overhead: the shortest program computes what the head computes, and the figures that do not vary."""

from __future__ import annotations

import re
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
    assert [line.split()[0] for line in lines] == ["infer", "train"]
    assert all("shortest" in line and "frames" in line for line in lines)


@pytest.mark.thorough
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_a_launch_enters_less_than_half_of_the_functions_that_tritons_own_call_enters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert overhead.main(["--rounds", "1", "--triton"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("triton") and "frames" in line]
    functions = {line.partition(" here:")[0]: int(re.findall(r"'functions': (\d+)", line)[0]) for line in lines}
    assert list(functions) == list(overhead.TRITON)
    assert functions["triton launches"] < functions["triton launches by Triton"] / 2
    assert functions["triton infer"] < functions["triton launches by Triton"]  # by plans
