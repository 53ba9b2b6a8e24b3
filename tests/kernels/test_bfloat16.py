"""Parity of the Triton kernels in bfloat16: each output and gradient against 1.2 times plain PyTorch's error.

On a GPU (``--device cuda``), or in the interpreter with the plugin interpreter_formats (run by test_interpreter.py).
The shapes are small and still give 4,096 elements of each tensor over the seeds.
"""

from __future__ import annotations

import operations
import pytest
import torch
from operations import PLAIN, Variant, assert_within_budget, compare
from shapes import Inputs, Shape
from tanh_kinds import KINDS

DTYPE = torch.bfloat16
runs_here = pytest.mark.skipif(
    not operations.runs("triton", DTYPE), reason="needs TRITON_INTERPRET=1 and -p interpreter_formats, or a GPU"
)
SEEDS = 8
PROPAGATION = [
    Shape("low_rank", 1, 16, 40, 512, 1, 1, T=2, why="L < C D / (C + D): identity 4"),
    Shape("full_rank", 1, 49, 40, 512, 1, 1, T=2, why="L > C D / (C + D)"),
]
SCORES = Shape("scores", 13, 16, 40, 128, 1, 512, why="4,096 logits and elements of bias_o over the seeds")
ATTENTION = Shape("split", 2, 19, 11, 6, 131, 4, why="one tile of rows and classes, five of channels, the last short")
POOLED = Shape("pooled", 2, 19, 11, 32, 128, 4, why="powers of v by each program, softmax and pooling in one kernel")
SEEDS_OF = {"in_range": 7, "tiny": 7, "one_wide_channel": 7, "uneven": 7, "across": 2, "saturated": 2}
"""The last two evaluate most channels one by one, which the interpreter takes long for."""


@runs_here
@pytest.mark.parametrize("shape", [ATTENTION, POOLED], ids=str)
def test_semantic_attention(shape: Shape) -> None:
    found = [
        compare("semantic_attention", shape, DTYPE, "triton", seed=seed, change=KINDS[kind])
        for kind, seeds in SEEDS_OF.items()
        for seed in range(seeds)
    ]
    assert_within_budget("semantic_attention", DTYPE, found)


@runs_here
@pytest.mark.parametrize("shape", PROPAGATION, ids=str)
@pytest.mark.parametrize("variant", [Variant(factors=True), PLAIN, Variant(True, "official", True, True)], ids=str)
def test_graph_propagation(variant: Variant, shape: Shape) -> None:
    found = [compare("graph_propagation", shape, DTYPE, "triton", variant, seed) for seed in range(SEEDS)]
    assert_within_budget("graph_propagation", DTYPE, found)


@runs_here
@pytest.mark.parametrize("offset", [-6.0, 6.0], ids=["nearly_shut", "nearly_open"])
def test_gates_that_are_hardly_moved(offset: float) -> None:
    """Where 1 - z or z is small, and its short form (2^-12 of 1) is a large part of it."""

    def change(inputs: Inputs) -> Inputs:
        return inputs | {"bias_zr": inputs["bias_zr"] + offset}

    found = [
        compare("graph_propagation", PROPAGATION[1], DTYPE, "triton", PLAIN, s, change=change) for s in range(SEEDS)
    ]
    assert_within_budget("graph_propagation", DTYPE, found)


@runs_here
@pytest.mark.parametrize("variant", [Variant(factors=True), PLAIN], ids=str)
def test_label_scores(variant: Variant) -> None:
    found = [compare("label_scores", SCORES, DTYPE, "triton", variant, seed) for seed in range(SEEDS)]
    assert_within_budget("label_scores", DTYPE, found, but=("d_bias_c",))  # C elements: too small to pool


@runs_here
def test_inference() -> None:
    """Where no gradient is asked for, f_o's output is not stored."""
    found = []
    for seed in range(SEEDS):
        expected = operations.expected_results("label_scores", SCORES, DTYPE, PLAIN, seed, None)
        with torch.no_grad():
            (logits,) = operations.fused("label_scores", PLAIN, 0, "triton")(expected.inputs)
        truth, plain = ({"logits": one["logits"]} for one in (expected.truth, expected.plain))
        found.append(operations.Comparison({"logits": logits}, truth, plain))
    assert_within_budget("label_scores", DTYPE, found)
