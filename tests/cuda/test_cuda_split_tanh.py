"""Scores by tensor-core products on CUDA, in the emulator: inside the polynomials' range, outside it and across it."""

from __future__ import annotations

import ctypes

import cuda_scores
import pytest
import torch
from cuda_scores import RAGGED, Results, Sizes
from tanh_kinds import KINDS

KIND = "split_scores"
REACH = {torch.bfloat16: 2.0, torch.float16: 1.0}
by_dtype = pytest.mark.parametrize("dtype", list(REACH), ids=str)


@pytest.fixture(scope="module")
def emulated() -> ctypes.CDLL:
    return cuda_scores.library()


def run(emulated: ctypes.CDLL, n: Sizes, inputs: Results, backwards: bool = False) -> Results:
    scores = cuda_scores.forward(emulated, n, inputs, backwards, KIND)
    return {"scores": scores} | cuda_scores.backward(emulated, n, inputs, backwards, KIND)


@by_dtype
@pytest.mark.parametrize("kind", KINDS)
def test_parity_on_ragged_sizes(emulated: ctypes.CDLL, kind: str, dtype: torch.dtype) -> None:
    drawn = [(n, KINDS[kind](cuda_scores.inputs_of(n, dtype, seed))) for n in RAGGED for seed in range(4)]
    cuda_scores.assert_within_budget(
        [run(emulated, n, inputs) for n, inputs in drawn], [inputs for _, inputs in drawn], dtype
    )


@by_dtype
def test_every_channel_has_its_own_accuracy(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    """p over sixty orders of magnitude along the channels (float16: three), in no order: d_u and d_v by channel."""
    n, g = Sizes(2, 40, 33, 136), torch.Generator().manual_seed(5)
    inputs = KINDS["in_range"](cuda_scores.inputs_of(n, dtype))
    inputs["p"] = 10 ** ((torch.rand(n.K, generator=g) - 0.5) * (60 if dtype == torch.bfloat16 else 3))
    results, truth = run(emulated, n, inputs), cuda_scores.truth(inputs)
    assert (results["scores"].double() - truth["scores"]).norm() <= 2e-3 * truth["scores"].norm()
    for name in ("d_u", "d_v"):
        result, expected = (t.double().reshape(-1, n.K) for t in (results[name], truth[name]))
        assert ((result - expected).norm(dim=0) <= 4e-3 * expected.norm(dim=0)).all(), name


@by_dtype
@pytest.mark.parametrize(
    "n",
    [Sizes(1, 310, 1, 2056), Sizes(1, 310, 1, 2056, scratch=1), Sizes(1, 3, 205, 2056)],
    ids=["parts_of_rows", "one_part", "chunks_of_classes"],
)
def test_gradients_where_a_side_passes_in_parts(emulated: ctypes.CDLL, n: Sizes, dtype: torch.dtype) -> None:
    """More rows than a part of d_v has, or one part of them all where scratch is short; more classes than a chunk."""
    drawn = [KINDS["one_wide_channel"](cuda_scores.inputs_of(n, dtype, seed)) for seed in range(2)]
    cuda_scores.assert_within_budget(
        [cuda_scores.backward(emulated, n, inputs, kind=KIND) for inputs in drawn], drawn, dtype
    )


@by_dtype
@pytest.mark.parametrize("kind", ["in_range", "one_wide_channel", "saturated"])
def test_results_do_not_depend_on_the_order_of_threads(emulated: ctypes.CDLL, kind: str, dtype: torch.dtype) -> None:
    n = Sizes(2, 37, 35, 72)
    inputs = KINDS[kind](cuda_scores.inputs_of(n, dtype, 3))
    cuda_scores.assert_equal_bits(*(run(emulated, n, inputs, backwards) for backwards in (False, True)))


@by_dtype
def test_channels_in_range_are_products_and_others_are_not(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    """Told by the error: products round their operands to float16, values by themselves are float32."""
    n, errors = Sizes(1, 32, 32, 64), {}
    for name, top in {"within": 0.99, "beyond": 1.01}.items():
        inputs = cuda_scores.inputs_of(n, dtype)
        for operand, bound in {"u": 4.0, "v": REACH[dtype] * top / 4.0}.items():
            values = inputs[operand].double()
            inputs[operand] = (values / values.abs().amax(dim=tuple(range(values.dim() - 1))) * bound).to(dtype)
        truth = cuda_scores.truth(inputs)["d_p"]
        errors[name] = float((run(emulated, n, inputs)["d_p"].double() - truth).norm() / truth.norm())
    assert errors["within"] > 2e-5 > 2e-6 > errors["beyond"]


@by_dtype
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("name", ["u", "v", "p", "d_scores"])
def test_nonfinite_values_reach_what_they_reach_in_the_reference(
    emulated: ctypes.CDLL, name: str, value: float, dtype: torch.dtype
) -> None:
    for n in (Sizes(2, 5, 3, 6), Sizes(1, 33, 19, 72)):
        inputs = cuda_scores.inputs_of(n, dtype, 1, 0.05)
        inputs[name].view(-1)[inputs[name].numel() // 2] = value
        results, truth = run(emulated, n, inputs), cuda_scores.truth(inputs)
        for output, expected in truth.items():
            result, finite = results[output], expected.isfinite()
            assert torch.equal(result.isfinite(), finite), (output, n)
            if value != value:
                assert torch.equal(result.isnan(), expected.isnan()), (output, n)
            assert (result.double() - expected)[finite].norm() <= 1e-2 * expected[finite].norm(), (output, n)


def test_products_that_overflow_float32(emulated: ctypes.CDLL) -> None:
    n = Sizes(3, 13, 7, 11)
    inputs = cuda_scores.inputs_of(n, torch.bfloat16)
    inputs["u"][:, :, 3], inputs["v"][:, 3] = 1e38, -1e38
    results, truth = run(emulated, n, inputs), cuda_scores.truth(inputs)
    assert results["d_u"][:, :, 3].abs().max() == 0 and results["d_v"][:, 3].abs().max() == 0
    for name, expected in truth.items():
        assert (results[name].double() - expected).norm() <= 4e-3 * expected.norm(), name


@by_dtype
def test_nothing_to_do(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    for empty in (Sizes(0, 5, 3, 6), Sizes(2, 5, 0, 6), Sizes(2, 5, 3, 0)):
        results = run(emulated, empty, cuda_scores.inputs_of(empty, dtype))
        assert all((t == 0).all() for t in results.values()), empty
