"""The quantized head as a rival of the benchmarks: where it belongs, and that the gate sees what it computes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")

from benchmarks import rivals
from benchmarks.harness import cases, verify
from benchmarks.harness.cases import Case, Shape
from benchmarks.rivals import library

SHAPE = Shape("small", 30, locations=9, channels=128, word_dim=10, joint_dim=64, score_dim=48, out_dim=64)
CASE = Case("head", SHAPE, 2, "infer", torch.bfloat16)
FP8 = rivals.RIVALS["fp8"]


def test_it_is_for_inference_of_the_head_in_bfloat16() -> None:
    assert FP8.refuses(replace(CASE, dtype=torch.float32)) == "only the whole head in bfloat16 is quantized"
    assert FP8.refuses(replace(CASE, operation="label_scores")) == "only the whole head in bfloat16 is quantized"
    assert FP8.refuses(CASE) == "it runs on cuda tensors, not on cpu"
    assert not FP8.applies(CASE) and not FP8.applies(replace(CASE, mode="train"))


@pytest.mark.parametrize("shape", [SHAPE, replace(SHAPE, classes=3)], ids=["low_rank", "full_rank"])
def test_it_passes_the_gate_on_the_reference(shape: Shape) -> None:
    assert shape.low_rank == (shape.classes == 30)
    on_reference = replace(FP8, build=partial(library._build_fp8, "reference"))
    checks = verify.gate(replace(CASE, shape=shape), [on_reference])
    inferred = next(check for check in checks if check.quantity == "output 0")
    recorded = next(check for check in checks if check.quantity == "recorded output 0")
    assert inferred.error > recorded.error, "the output of inference is not the quantized head's"


def test_the_gate_is_red_for_a_wrong_scale() -> None:
    def build(case: Case, tensors: rivals.Tensors) -> rivals.Program:
        head = rivals.head_module("reference", case, tensors)
        quantized = head.quantize("fp8")
        quantized.graph_propagation.scale_h.mul_(2)  # type: ignore[union-attr, operator]
        return library._inferring(head, quantized, tensors)

    with pytest.raises(verify.ParityError, match="output 0"):
        verify.gate(CASE, [replace(FP8, build=build)])


def test_its_steps_are_timed_without_autograd() -> None:
    tensors = cases.tensors(CASE)
    step = rivals.step(library._build_fp8("reference", CASE, tensors), CASE)
    assert step() == ()
