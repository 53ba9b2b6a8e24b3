"""Scores of semantic attention on CUDA, run in the emulator: exact path, softmax, and every gradient."""

from __future__ import annotations

import ctypes

import cuda_emulation
import cuda_scores
import pytest
import torch
from cuda_scores import DTYPES, RAGGED, Sizes
from torch import Tensor

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SCALES = (0.1, 1.0, 10.0)


@pytest.fixture(scope="module")
def emulated() -> ctypes.CDLL:
    return cuda_scores.library()


def run(emulated: ctypes.CDLL, n: Sizes, inputs: cuda_scores.Results, backwards: bool = False) -> cuda_scores.Results:
    scores = cuda_scores.forward(emulated, n, inputs, backwards)
    return {"scores": scores} | cuda_scores.backward(emulated, n, inputs, backwards)


@by_dtype
def test_parity_on_ragged_sizes(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    drawn = [(n, cuda_scores.inputs_of(n, dtype, seed, scale)) for n in RAGGED for scale in SCALES for seed in range(2)]
    cuda_scores.assert_within_budget(
        [run(emulated, n, inputs) for n, inputs in drawn], [inputs for _, inputs in drawn], dtype
    )


@pytest.mark.parametrize(
    "n", [Sizes(1, 6370, 1, 129), Sizes(2, 100, 3, 40, scratch=1)], ids=["chunks_of_a_part", "long_parts_of_the_rows"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_parity_where_work_is_cut_otherwise(emulated: ctypes.CDLL, n: Sizes, dtype: torch.dtype) -> None:
    """Fewer parts of the channels than chunks; more rows a block, where scratch is short."""
    inputs = cuda_scores.inputs_of(n, dtype)
    cuda_scores.assert_within_budget([run(emulated, n, inputs)], [inputs], dtype)


@by_dtype
def test_results_do_not_depend_on_the_order_of_threads(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    n = Sizes(2, 37, 67, 65)
    inputs = cuda_scores.inputs_of(n, dtype, 3)
    cuda_scores.assert_equal_bits(*(run(emulated, n, inputs, backwards) for backwards in (False, True)))


@by_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("name", ["u", "v", "p", "d_scores"])
def test_nonfinite_values_reach_what_they_reach_in_the_reference(
    emulated: ctypes.CDLL, name: str, value: float, dtype: torch.dtype
) -> None:
    for n in (Sizes(2, 5, 3, 6), Sizes(1, 33, 19, 70)):
        inputs = cuda_scores.inputs_of(n, dtype, 1, 0.05)
        inputs["v"].view(-1)[0] = 0.0
        inputs[name].view(-1)[inputs[name].numel() // 2] = value
        results, truth = run(emulated, n, inputs), cuda_scores.truth(inputs)
        assert any(not t.isfinite().all() for t in truth.values()) or name in ("u", "v")
        for output, expected in truth.items():
            result, finite = results[output], expected.isfinite()
            assert torch.equal(result.isfinite(), finite), (output, n)
            if value != value or name != "p":  # p times a sum is infinite where the sum of infinite terms is NaN
                assert torch.equal(result.isnan(), expected.isnan()), (output, n)
            limit = 2e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-5
            error = (result.double() - expected)[finite].norm()
            assert error <= limit * expected[finite].norm(), (output, n)


@pytest.mark.parametrize("scale", [1e19, 1e30, 1e38])
def test_products_that_overflow_float32(emulated: ctypes.CDLL, scale: float) -> None:
    """u v beyond 3.4e38: saturated, and no gradient passes."""
    n = Sizes(3, 13, 7, 11)
    inputs = cuda_scores.inputs_of(n, torch.float32)
    inputs["u"][:, :, 3], inputs["v"][:, 3] = scale, -scale
    results = run(emulated, n, inputs)
    assert results["d_u"][:, :, 3].abs().max() == 0 and results["d_v"][:, 3].abs().max() == 0
    cuda_scores.assert_within_budget([results], [inputs], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["tiny", "subnormal", "zeros", "saturated", "uneven"])
def test_hostile_magnitudes(emulated: ctypes.CDLL, kind: str, dtype: torch.dtype) -> None:
    n = Sizes(2, 35, 21, 66)
    inputs = cuda_scores.inputs_of(n, dtype)
    if kind == "tiny":
        inputs["u"], inputs["v"] = inputs["u"] * 1e-20, inputs["v"] * 1e-12
    elif kind == "subnormal":  # u alone: the products are normal
        inputs["u"], inputs["v"] = inputs["u"] * 1e-39, inputs["v"] * 1e12
    elif kind == "zeros":
        inputs["u"][:, ::2], inputs["v"][::3], inputs["p"][::5] = 0.0, 0.0, 0.0
    elif kind == "saturated":
        inputs["u"] = inputs["u"].sign() * (20 + inputs["u"].abs())
        inputs["v"] = inputs["v"].sign()
    else:
        size = torch.logspace(-6, 6, n.K, dtype=dtype)
        inputs["u"], inputs["v"] = inputs["u"] * size, inputs["v"] / size
    cuda_scores.assert_within_budget([run(emulated, n, inputs)], [inputs], dtype)


@by_dtype
def test_nothing_to_do(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    for empty in (Sizes(0, 5, 3, 6), Sizes(2, 5, 0, 6), Sizes(2, 5, 3, 0)):
        results = run(emulated, empty, cuda_scores.inputs_of(empty, dtype))
        assert all((t == 0).all() for t in results.values()), empty


def softmax_of(emulated: ctypes.CDLL, parts: Tensor, backwards: bool = False) -> Tensor:
    """parts [parts, rows, L] in float32 or float64."""
    attention = torch.full_like(parts[0], float("nan"))
    dtype, (count, rows, locations) = DTYPES.index(parts.dtype), parts.shape
    cuda_emulation.call(
        emulated, "emulated_softmax", dtype, rows, locations, count, parts, attention, backwards=backwards
    )
    return attention


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 1), (1, 9, 81), (3, 17, 32), (2, 4, 1000)], ids=str)
def test_softmax_over_locations(emulated: ctypes.CDLL, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    parts = (torch.randn(shape, generator=torch.manual_seed(0), dtype=torch.float64) * 20).to(dtype)
    truth = parts.double().sum(0).softmax(-1)
    result = softmax_of(emulated, parts)
    assert torch.equal(result, softmax_of(emulated, parts, backwards=True))
    assert (result.double() - truth).norm() <= (1e-13 if dtype == torch.float64 else 2e-6) * truth.norm()


def test_softmax_in_place(emulated: ctypes.CDLL) -> None:
    scores = torch.randn(1, 9, 81, generator=torch.manual_seed(0))
    expected = softmax_of(emulated, scores)
    cuda_emulation.call(emulated, "emulated_softmax_in_place", DTYPES.index(scores.dtype), 9, 81, scores)
    assert torch.equal(scores[0], expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e38], ids=str)
def test_softmax_of_hostile_scores(emulated: ctypes.CDLL, value: float) -> None:
    scores = torch.randn(1, 4, 40, generator=torch.manual_seed(0))
    scores[0, 1, 7], scores[0, 2, :] = value, value
    assert torch.allclose(softmax_of(emulated, scores), scores[0].softmax(-1), rtol=1e-5, atol=1e-30, equal_nan=True)


@by_dtype
@pytest.mark.parametrize("given", ["both", "attention", "pooled"])
@pytest.mark.parametrize("shape", [(3, 1), (17, 81), (9, 65)], ids=str)
def test_softmax_backward(emulated: ctypes.CDLL, shape: tuple[int, int], given: str, dtype: torch.dtype) -> None:
    generator, exact = torch.manual_seed(1), cuda_scores.wide(dtype)
    attention = torch.randn(shape, generator=generator).softmax(-1).to(exact)
    direct = torch.randn(shape, generator=generator).to(exact) if given != "pooled" else None
    pooled = torch.randn(shape, generator=generator).to(dtype) if given != "attention" else None
    g = sum(t.double() for t in (direct, pooled) if t is not None)
    truth = attention.double() * (g - (attention.double() * g).sum(-1, keepdim=True))
    result = torch.full_like(attention, float("nan"))
    cuda_emulation.call(
        emulated, "emulated_softmax_backward", DTYPES.index(dtype), *shape, attention, direct, pooled, result
    )
    if shape[1] == 1:  # attention is one and nothing passes, to the rounding of its gradient
        assert result.abs().max() <= torch.finfo(exact).eps
    else:
        assert (result.double() - truth).norm() <= (1e-13 if dtype == torch.float64 else 2e-6) * truth.norm()
