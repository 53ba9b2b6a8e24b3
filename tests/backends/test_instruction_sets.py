"""The CPU loops of every instruction set that this processor has, not only of the one that the library chooses."""

from __future__ import annotations

import subprocess

import pytest
from compiled import ROOT, linked

from ssgrl_fast.backends import build

# A loop rounds a handful of times in its compute type and once to its storage type. Sums of 45 to 1,037 terms are
# measured against the sum of magnitudes; an attention weight against itself, with scores of tens before the exp.
LIMIT = {"float32": 2e-6, "float64": 4e-15, "bfloat16": 4e-3}
ATTENTION_LIMIT = {"float32": 3e-5, "float64": 6e-14, "bfloat16": 3e-5}
LOOPS = {
    "attention_row",
    "joint_backward",
    "gate",
    "blend",
    "blend_backward",
    "gate_backward",
    "score",
    "score_backward",
    "column_sums",
}


@pytest.fixture(scope="module")
def errors() -> dict[tuple[str, str, str], float]:
    sources = [ROOT / "tests/support/native/instruction_sets.cpp", *sorted((ROOT / "csrc/cpu").glob("isa_*.cpp"))]
    program = linked(sources, [*build.FLAGS, "-I", str(ROOT / "csrc")], [])
    lines = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
    return {(isa, dtype, loop): float(error) for isa, dtype, loop, error in map(str.split, lines)}


def test_every_loop_ran_in_every_set(errors: dict[tuple[str, str, str], float]) -> None:
    sets = {isa for isa, _, _ in errors}
    assert "generic" in sets
    assert set(errors) == {(isa, dtype, loop) for isa in sets for dtype in LIMIT for loop in LOOPS}


def test_every_loop_is_accurate_in_every_set(errors: dict[tuple[str, str, str], float]) -> None:
    limits = {key: (ATTENTION_LIMIT if key[2] == "attention_row" else LIMIT)[key[1]] for key in errors}
    over = {key: (error, limits[key]) for key, error in errors.items() if not error <= limits[key]}
    assert not over
