"""The error-budget helper itself: what it lets pass, what it must catch, and what its failures say."""

from __future__ import annotations

import math

import pytest
import shapes
import torch
from torch import Tensor

from ssgrl_fast import testing

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
OPERATIONS = ("semantic_attention", "graph_propagation", "label_scores", "head")


def draw(*size: int, seed: int = 0) -> Tensor:
    return shapes.normal(shapes.generator(seed), *size)


def off_by(truth: Tensor, relative: float, seed: int = 1) -> Tensor:
    """The truth with a random error of exactly this relative L2 norm."""
    noise = draw(*truth.shape, seed=seed)
    return truth + noise * (relative * truth.norm() / noise.norm())


def assert_pooled(
    result: object, truth: object, plain: object = None, *, dtype: torch.dtype = F32, gradient: bool = False
) -> float:
    return testing.assert_close_to_truth(
        "pooled", result, truth, plain, operation="semantic_attention", gradient=gradient, dtype=dtype
    )


# The table.


@pytest.mark.parametrize("operation", OPERATIONS)
def test_budgets_are_those_of_the_design(operation: str) -> None:
    assert (testing.budget(operation, F64).forward, testing.budget(operation, F64).gradient) == (1e-12, 1e-12)
    assert (testing.budget(operation, F32).forward, testing.budget(operation, F32).gradient) == (2e-6, 1e-5)
    for dtype in (BF16, F16):
        limits = testing.budget(operation, dtype)
        assert limits.forward is None and limits.gradient is None and limits.factor == 1.2
        assert limits.floor == torch.finfo(dtype).eps / 4, (
            "half a unit in the last place, relative to the largest mantissa"
        )


def test_unknown_operation_or_dtype() -> None:
    with pytest.raises(ValueError, match="tail.*semantic_attention|semantic_attention.*tail"):
        testing.budget("tail", F32)
    with pytest.raises(ValueError, match="int64"):
        testing.budget("head", torch.int64)


# Relative errors.


def test_relative_error_is_the_ratio_of_norms() -> None:
    truth = draw(50, 3)
    assert testing.relative_error(truth, truth) == 0.0
    assert math.isclose(testing.relative_error(off_by(truth, 3e-4), truth), 3e-4, rel_tol=1e-9)


def test_relative_error_of_a_zero_truth_is_absolute() -> None:
    zero = torch.zeros(7, dtype=F64)
    assert testing.relative_error(torch.full((4,), 0.5), torch.zeros(4)) == 1.0
    assert testing.relative_error(zero, zero) == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_relative_error_of_anything_not_finite_is_infinite(bad: float) -> None:
    truth = draw(9)
    result = truth.clone()
    result[4] = bad
    assert testing.relative_error(result, truth) == float("inf")


# What passes, what fails.


@pytest.mark.parametrize(
    ("dtype", "gradient", "limit"), [(F64, False, 1e-12), (F64, True, 1e-12), (F32, False, 2e-6), (F32, True, 1e-5)]
)
def test_fixed_budgets_from_both_sides(dtype: torch.dtype, gradient: bool, limit: float) -> None:
    truth = draw(40, 30)
    assert math.isclose(
        assert_pooled(off_by(truth, 0.98 * limit), truth, dtype=dtype, gradient=gradient), 0.98 * limit, rel_tol=1e-3
    )
    with pytest.raises(AssertionError):
        assert_pooled(off_by(truth, 1.02 * limit), truth, dtype=dtype, gradient=gradient)


def test_the_plain_form_widens_float32_gradients_and_nothing_else() -> None:
    truth = draw(40, 30)
    poor = off_by(truth, 1e-4, seed=2)
    assert_pooled(off_by(truth, 1.19e-4), truth, poor, gradient=True)
    with pytest.raises(AssertionError):
        assert_pooled(off_by(truth, 1.21e-4), truth, poor, gradient=True)
    with pytest.raises(AssertionError):
        assert_pooled(off_by(truth, 1e-5), truth, poor, gradient=False)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("gradient", [False, True])
def test_reduced_dtypes_are_held_to_the_plain_forms_error(dtype: torch.dtype, gradient: bool) -> None:
    truth = draw(70, 70)
    floor = testing.budget("head", dtype).floor
    plain = off_by(truth, 5 * floor, seed=2)
    assert_pooled(off_by(truth, 5.9 * floor), truth, plain, dtype=dtype, gradient=gradient)
    with pytest.raises(AssertionError):
        assert_pooled(off_by(truth, 6.1 * floor), truth, plain, dtype=dtype, gradient=gradient)


def test_reduced_dtypes_have_a_floor_of_half_a_unit_in_the_last_place() -> None:
    truth = draw(70, 70)
    assert_pooled(off_by(truth, 0.98 * 2**-9), truth, truth, dtype=BF16)
    with pytest.raises(AssertionError):
        assert_pooled(off_by(truth, 1.02 * 2**-9), truth, truth, dtype=BF16)


def test_rounding_alone_stays_below_the_floor() -> None:
    """A result rounded once is always inside: the floor is no tighter than the dtype."""
    truth = draw(300, 300)
    for dtype in (BF16, F16):
        assert_pooled(truth.to(dtype), truth, truth, dtype=dtype)


def test_errors_are_pooled_over_seeds() -> None:
    truths = [draw(50, 50, seed=s) for s in range(4)]
    results = [off_by(t, 1e-6 if s else 3e-6, seed=9 + s) for s, t in enumerate(truths)]
    assert_pooled(results, truths)  # sqrt((9 + 3) / 4) e-6 < 2e-6, though the first alone is over
    with pytest.raises(AssertionError):
        assert_pooled(results[0], truths[0])


# Planted errors.


PLANTED = {
    "sign": lambda t: -t,
    "transposed": lambda t: t.T.contiguous(),
    "one element zero": lambda t: t.index_put((torch.tensor(3), torch.tensor(5)), torch.zeros((), dtype=t.dtype)),
    "last row missing": lambda t: torch.cat([t[:-1], torch.zeros_like(t[-1:])]),
    "rows swapped": lambda t: torch.cat([t[1:2], t[:1], t[2:]]),
    "one per cent": lambda t: t * 1.01,
    "one nan": lambda t: t.index_fill(0, torch.tensor(2), float("nan")),
    "one inf": lambda t: t.index_put((torch.tensor(0), torch.tensor(0)), torch.full((), float("inf"), dtype=t.dtype)),
    "zeros": torch.zeros_like,
}


@pytest.mark.parametrize("error", PLANTED)
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("gradient", [False, True])
def test_planted_errors_are_caught(error: str, dtype: torch.dtype, gradient: bool) -> None:
    truth = draw(80, 80)
    rounded = truth.to(dtype)
    assert_pooled(rounded, truth, rounded, dtype=dtype, gradient=gradient)
    with pytest.raises(AssertionError, match="pooled"):
        assert_pooled(PLANTED[error](rounded), truth, rounded, dtype=dtype, gradient=gradient)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_one_wrong_element_in_a_million_is_caught(dtype: torch.dtype) -> None:
    """An element at a tile's edge: too little for the L2 norm of a reduced dtype, caught element by element."""
    truth = draw(1000, 1000)
    result = truth.to(dtype)
    result[999, 999] = truth[999, 999].sign() * -2.0
    with pytest.raises(AssertionError, match="999999"):
        assert_pooled(result, truth, truth.to(dtype), dtype=dtype)


def test_a_nan_in_the_plain_form_excuses_nothing() -> None:
    truth = draw(80, 80)
    plain = truth.clone()
    plain[0, 0] = float("nan")
    with pytest.raises((AssertionError, ValueError)):
        assert_pooled(truth * 1.5, truth, plain, dtype=BF16)


def test_a_nan_in_the_truth_is_no_truth() -> None:
    truth = draw(80, 80)
    truth[0, 0] = float("nan")
    with pytest.raises((AssertionError, ValueError)):
        assert_pooled(truth, truth, dtype=F32)


def test_zero_truths_are_absolute() -> None:
    zero = torch.zeros(5, dtype=F64)
    assert_pooled(zero, zero)
    with pytest.raises(AssertionError):
        assert_pooled(zero + 1e-5, zero)
    with pytest.raises(AssertionError):
        assert_pooled(zero + 1e-2, zero, zero, dtype=BF16)


# Misuse and messages.


def test_a_missing_plain_form_is_refused_in_reduced_dtypes() -> None:
    truth = draw(80, 80)
    with pytest.raises(ValueError, match="plain"):
        assert_pooled(truth, truth, dtype=BF16)


def test_too_few_elements_for_the_factor_are_refused() -> None:
    truth = draw(63, 65)
    with pytest.raises(ValueError, match="4095.*4096|4096"):
        assert_pooled(truth, truth, truth, dtype=BF16)
    assert_pooled([truth, truth[:1]], [truth, truth[:1]], [truth, truth[:1]], dtype=BF16)


@pytest.mark.parametrize("wrong", [(80, 79), (80,), (80, 80, 1), (6400,)])
def test_shapes_are_never_broadcast(wrong: tuple[int, ...]) -> None:
    truth = draw(80, 80)
    with pytest.raises(AssertionError, match="shape"):
        assert_pooled(torch.zeros(wrong, dtype=F64), truth)


def test_lists_of_unequal_length_are_refused() -> None:
    truth = draw(80, 80)
    with pytest.raises(AssertionError, match="2.*1|1.*2"):
        assert_pooled([truth, truth], [truth])
    with pytest.raises(AssertionError):
        assert_pooled([], [])


def test_the_message_names_the_worst_index_and_its_values() -> None:
    truth = draw(40, 30)
    result = truth.clone()
    result[7, 11] = 123.5
    with pytest.raises(AssertionError) as caught:
        assert_pooled(result, truth)
    message = str(caught.value)
    index = 7 * 30 + 11
    for part in ("pooled", "torch.float32", "2.000e-06", "123.5", f"{float(truth[7, 11]):.6g}"[:6], str(index)):
        assert part in message, (part, message)


def test_the_message_names_a_nan() -> None:
    truth = draw(40, 30)
    result = truth.clone()
    result[3, 4] = float("nan")
    with pytest.raises(AssertionError, match="nan") as caught:
        assert_pooled(result, truth)
    assert str(3 * 30 + 4) in str(caught.value)
