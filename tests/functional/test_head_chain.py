"""The three operations chained as the head chains them, factors handed on: logits, attention and every gradient.

Attention and features take the gradients of h0 from graph_propagation and label_scores, and pooled gets none.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import operations
import pytest
import shapes
import torch
from operations import by_backend
from shapes import SHAPES, Inputs, Shape
from torch import Tensor

from ssgrl_fast import functional, reference, testing

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
NAMES = (
    "u",
    "v",
    "p",
    "features",
    "weight_zr",
    "bias_zr",
    "weight_h",
    "bias_h",
    "weight_o",
    "bias_o",
    "weight_c",
    "bias_c",
)


def inputs_of(shape: Shape, dtype: torch.dtype, seed: int) -> Inputs:
    weights = shapes.graph_propagation_inputs(shape, dtype, seed) | shapes.label_scores_inputs(shape, dtype, seed)
    return {
        n: t for n, t in weights.items() if n not in ("h0", "h_T", "attention", "features")
    } | shapes.semantic_attention_inputs(shape, dtype, seed)


def chain(room: Any, x: Inputs, steps: int, factors: bool, **backend: str) -> tuple[Tensor, Tensor]:
    pooled, attention = room.semantic_attention(x["u"], x["v"], x["p"], x["features"], **backend)
    shared = {"attention": attention, "features": x["features"]} if factors else {}
    gates = (x["weight_zr"], x["bias_zr"], x["weight_h"], x["bias_h"])
    h_T = room.graph_propagation(pooled, x["adjacency"], *gates, steps=steps, **shared, **backend)
    return room.label_scores(
        h_T, pooled, x["weight_o"], x["bias_o"], x["weight_c"], x["bias_c"], **shared, **backend
    ), attention


def evaluate(
    room: Any, x: Inputs, upstream: list[Tensor], steps: int, factors: bool, **backend: str
) -> dict[str, Tensor]:
    leaves = operations.leaves_of(x)
    outputs = chain(room, leaves, steps, factors, **backend)
    torch.autograd.backward(list(outputs), upstream)
    return {"logits": outputs[0].detach(), "attention": outputs[1].detach()} | {f"d_{n}": leaves[n].grad for n in NAMES}


@lru_cache(maxsize=400)
def expected_results(shape: Shape, dtype: torch.dtype, factors: bool, seed: int) -> operations.Expectation:
    x = inputs_of(shape, dtype, seed)
    with torch.no_grad():
        upstream = operations.upstream_of(chain(reference, x, shape.T, factors), seed)
    with operations.ExactSlopes():
        truth = evaluate(reference, shapes.truth_of(x), [g.double() for g in upstream], shape.T, factors)
    return operations.Expectation(x, upstream, truth, evaluate(reference, x, upstream, shape.T, factors))


def compare(shape: Shape, dtype: torch.dtype, backend: str, factors: bool, seed: int = 0) -> operations.Comparison:
    operations.skip_unless_it_runs(backend, dtype)
    expected = expected_results(shape, dtype, factors, seed)
    mine = evaluate(functional, expected.inputs, expected.upstream, shape.T, factors, backend=backend)
    return operations.Comparison(mine, expected.truth, expected.plain)


by_factors = pytest.mark.parametrize("factors", [False, True], ids=["h0", "factors"])


@by_backend
@by_factors
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=shapes.shape_id)
def test_parity(shape: Shape, dtype: torch.dtype, factors: bool, backend: str) -> None:
    operations.assert_within_budget("head", dtype, [compare(shape, dtype, backend, factors)])


@by_backend
def test_parity_bfloat16(backend: str) -> None:
    """Pooled over all named shapes and several seeds."""
    operations.assert_within_budget(
        "head", BF16, [compare(s, BF16, backend, True, seed) for s in SHAPES.values() for seed in range(19)]
    )


@pytest.mark.thorough
@by_backend
@by_factors
def test_parity_at_the_papers_size(factors: bool, backend: str) -> None:
    """COCO at scale 448: C = 80, L = 49, D = 2048, K = 1024. The truth does not depend on the factors."""
    shape = shapes.REAL["coco_448"]
    assert shapes.low_rank_pays(shape), "the low-rank first step must pay"
    expected = expected_results(shape, F32, False, 0)
    mine = evaluate(functional, expected.inputs, expected.upstream, shape.T, factors, backend=backend)
    operations.assert_within_budget("head", F32, [operations.Comparison(mine, expected.truth, expected.plain)])


def test_factors_do_not_change_the_truth() -> None:
    shape = SHAPES["few_locations"]
    x = inputs_of(shape, F64, 0)
    upstream = operations.upstream_of(chain(reference, x, 3, True), 0)
    with_factors, without = (evaluate(reference, x, upstream, 3, factors) for factors in (True, False))
    for name, tensor in with_factors.items():
        assert testing.relative_error(tensor, without[name]) <= 1e-12, name
