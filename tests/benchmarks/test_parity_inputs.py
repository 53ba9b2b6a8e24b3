"""Inputs that ``parity`` leaves out: plain PyTorch fails on them in float32 too, and the kernels not much worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks import parity, rivals
from benchmarks.harness import cases, verify
from ssgrl_fast.testing import budget

Tensors = dict[str, Tensor]


def scaled(by: float, *names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value * by if name in names else value for name, value in tensors.items()}


WEIGHTS = ("weight_u", "weight_v", "weight_p", "weight_a", "weight_zr", "weight_h", "weight_o", "weight_c")
BEYOND = {
    "features": scaled(1e4, "feature_map"),
    "scores": scaled(100.0, "weight_p", "weight_a"),
    "graph": scaled(1e4, "adjacency"),
    "weights": scaled(100.0, *WEIGHTS),
}


def errors(alter: Callable[[Tensors], Tensors]) -> tuple[Tensors, Tensors]:
    """Relative errors of the plain form and of the cpu kernels, by quantity, over several draws."""
    case = replace(next(cases.select(("head",), ("voc",), (2,), ("train",))).small(), mode="train")
    inputs = [alter(cases.tensors(case, seed)) for seed in verify.SEEDS]
    wide = replace(case, dtype=torch.float64)
    truths = [verify.evaluate(verify.truth(wide, {k: v.double() for k, v in t.items()}), wide) for t in inputs]
    plain = [verify.evaluate(verify.truth(case, t), case) for t in inputs]
    cpu = [verify.evaluate(rivals.RIVALS["cpu"].build(case, t), case) for t in inputs]
    sides = ({q: verify._pooled(q, found, truths) for q in truths[0]} for found in (plain, cpu))
    return tuple(sides)  # type: ignore[return-value]


@pytest.mark.thorough
@pytest.mark.parametrize("name", BEYOND)
def test_inputs_that_are_left_out_are_beyond_float32(name: str) -> None:
    pytest.importorskip("ssgrl_fast._C", reason="the cpu kernels are not built")
    plain, cpu = errors(BEYOND[name])
    limits = budget("head", torch.float32)
    over = [q for q, error in plain.items() if error > (limits.gradient if "gradient" in q else limits.forward)]
    assert over, "plain PyTorch is within the budget: the input belongs into parity's set"
    assert {q: (error, plain[q]) for q, error in cpu.items() if not error <= max(8 * plain[q], 1e-5)} == {}


@pytest.mark.thorough
def test_the_hostile_set_is_within_float32() -> None:
    plain, _ = errors(parity.hostile)
    assert max(plain.values()) < 1e-5 and max(error for q, error in plain.items() if "output" in q) < 2e-6
