"""semantic_attention on every backend, dtype and named shape: pooled, attention and every gradient against float64."""

from __future__ import annotations

from dataclasses import replace

import operations
import pytest
import shapes
import torch
from operations import assert_within_budget, by_backend, compare
from shapes import LAYOUTS, SHAPES, Inputs, Shape

from ssgrl_fast import functional

STEM = "semantic_attention"
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
by_exact_dtype = pytest.mark.parametrize("dtype", [F64, F32], ids=str)
by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=shapes.shape_id)
POOL_SEEDS = 14  # x 16 shapes: over 4,096 elements of p


@by_backend
@by_exact_dtype
@by_shape
def test_parity(shape: Shape, dtype: torch.dtype, backend: str) -> None:
    assert_within_budget(STEM, dtype, [compare(STEM, shape, dtype, backend, seed=seed) for seed in range(2)])


@by_backend
@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_parity_reduced(dtype: torch.dtype, backend: str) -> None:
    """Pooled over all named shapes and several seeds."""
    operations.skip_unless_it_runs(backend, dtype)
    assert_within_budget(
        STEM,
        dtype,
        [compare(STEM, s, dtype, backend, seed=seed) for s in SHAPES.values() for seed in range(POOL_SEEDS)],
    )


@by_backend
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_parity_at_real_size(dtype: torch.dtype, backend: str) -> None:
    """C = 20, L = 49, K = 1024; five seeds make a pool of 5,120 elements of p."""
    shape = replace(shapes.REAL["voc_448"], D=512)
    assert_within_budget(STEM, dtype, [compare(STEM, shape, dtype, backend, seed=seed) for seed in range(5)])


@by_backend
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(
    "shape", [SHAPES[n] for n in ("tiny", "odd", "off_tile", "one_location", "empty_batch")], ids=shapes.shape_id
)
def test_poisoned_memory(shape: Shape, dtype: torch.dtype, backend: str) -> None:
    operations.assert_poisoned_memory_changes_nothing(STEM, shape, dtype, backend)


@by_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape", [SHAPES[n] for n in ("odd", "one_class", "one_location", "on_tile")], ids=shapes.shape_id
)
def test_parity_in_any_layout(shape: Shape, layout: str, backend: str) -> None:
    """Strided inputs in rooms full of NaN: what lies between the elements is never read."""
    assert_within_budget(STEM, F32, [compare(STEM, shape, F32, backend, layout=layout)])


def expanded(inputs: Inputs) -> Inputs:
    """Stride 0: one image for the whole batch, one class's words for all, one channel for all, one location for all."""
    return {
        "u": inputs["u"][:1].expand(3, -1, -1),
        "v": inputs["v"][:1].expand(7, -1),
        "p": inputs["p"][:1].expand(11),
        "features": inputs["features"][:, :1].expand(-1, 13, -1),
    }


@by_backend
def test_expanded_inputs(backend: str) -> None:
    assert_within_budget(STEM, F32, [compare(STEM, SHAPES["odd"], F32, backend, change=expanded)])


@by_backend
@by_shape
def test_attention_rows_sum_to_one(shape: Shape, backend: str) -> None:
    _, attention = functional.semantic_attention(**operations.inputs_of(STEM, shape, F32), backend=backend)
    assert attention.shape == (shape.B, shape.C, shape.L)
    assert (attention >= 0).all()
    assert torch.allclose(attention.sum(-1), torch.ones(shape.B, shape.C), atol=1e-6)


@by_backend
def test_one_location_has_attention_one_and_no_gradient(backend: str) -> None:
    leaves = operations.leaves_of(operations.inputs_of(STEM, SHAPES["one_location"], F32))
    pooled, attention = functional.semantic_attention(**leaves, backend=backend)
    (pooled.square().sum() + attention.sum()).backward()
    assert torch.equal(attention, torch.ones_like(attention))
    assert torch.equal(pooled, leaves["features"].expand_as(pooled))
    for name in ("u", "v", "p"):
        assert not leaves[name].grad.any(), name


@by_backend
def test_scores_far_apart_do_not_overflow(backend: str) -> None:
    """Scores of ±1e4 and a gap of 2e4 between locations: the softmax is one-hot and everything is finite."""
    u = torch.tensor([[[50.0], [-50.0], [0.0]]])
    leaves = [t.requires_grad_() for t in (u, torch.tensor([[2.0], [-2.0]]), torch.tensor([1e4]), torch.randn(1, 3, 5))]
    pooled, attention = functional.semantic_attention(*leaves, backend=backend)
    assert torch.allclose(attention, torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), rtol=0, atol=1e-30)
    assert torch.equal(pooled[0], leaves[3][0, :2])
    (pooled.sum() + attention.square().sum()).backward()
    assert all(torch.isfinite(t.grad).all() for t in leaves)


@by_backend
def test_equal_scores_average(backend: str) -> None:
    """p = 0: the attention is uniform, and the pooled feature the mean over locations."""
    inputs = operations.inputs_of(STEM, SHAPES["odd"], F64)
    pooled, attention = functional.semantic_attention(**inputs | {"p": torch.zeros(11, dtype=F64)}, backend=backend)
    assert torch.allclose(attention, torch.full_like(attention, 1 / 13), rtol=1e-14)
    assert torch.allclose(pooled, inputs["features"].mean(1, keepdim=True).expand_as(pooled), rtol=1e-12, atol=1e-14)


@by_backend
def test_images_do_not_mix(backend: str) -> None:
    inputs = operations.inputs_of(STEM, SHAPES["off_tile"], F32)
    pooled, attention = functional.semantic_attention(**inputs, backend=backend)
    for i in range(2):
        one = inputs | {"u": inputs["u"][i : i + 1], "features": inputs["features"][i : i + 1]}
        alone, weights = functional.semantic_attention(**one, backend=backend)
        assert torch.allclose(alone[0], pooled[i], rtol=1e-5, atol=1e-6) and torch.allclose(
            weights[0], attention[i], rtol=1e-5
        )
