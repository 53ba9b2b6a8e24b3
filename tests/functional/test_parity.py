"""``ssgrl_fast.testing.parity``: green for the same equations, red for others, in a sentence for other shapes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ssgrl_fast import functional, reference
from ssgrl_fast.testing import Budget, parity


def draws(dtype: torch.dtype, count: int = 3) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 40, 32), (2, 40, 32), (48, 64), (48,), (40, 48), (40,))
    return [[torch.randn(size, generator=generator).mul(0.3).to(dtype) for size in sizes] for _ in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_operation_is_within_its_budget_and_another_one_is_not(dtype: torch.dtype) -> None:
    rows = parity(functional.label_scores, reference.label_scores, draws(dtype), operation="label_scores")
    assert [row.quantity for row in rows] == ["output 0", *(f"gradient of input {index}" for index in range(6))]
    assert all(row.within for row in rows) and max(row.error for row in rows) > 0

    def other(*tensors: Tensor) -> Tensor:
        return functional.label_scores(*tensors) * 1.05

    assert not any(row.within for row in parity(other, reference.label_scores, draws(dtype), operation="label_scores"))


def test_modules_are_compared_with_their_parameters() -> None:
    plain = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    inputs = [[torch.randn(5, 8)] for _ in range(2)]
    rows = parity(copy.deepcopy(plain), plain, inputs)
    assert {row.quantity for row in rows} >= {"gradient of 0.weight", "gradient of 2.bias"}
    assert all(row.within for row in rows)
    changed = copy.deepcopy(plain)
    with torch.no_grad():
        changed[2].bias.add_(0.01)
    assert [row.quantity for row in parity(changed, plain, inputs) if not row.within] == ["output 0"]
    broken = copy.deepcopy(plain)
    broken[2].weight.data[0, 0] = torch.nan
    assert next(row for row in parity(broken, plain, inputs)).error == float("inf")


def test_what_cannot_be_compared_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="at least one entry with a floating-point tensor"):
        parity(torch.neg, torch.neg, [])
    with pytest.raises(ValueError, match=r"the module gives .*\(4,\).* the plain form"):
        parity(lambda x: x[:1], torch.neg, [[torch.ones(4)]])


def test_a_plain_form_that_is_not_finite_excuses_nothing() -> None:
    limits = Budget(None, None, 1e-3)
    assert limits.allowed(gradient=True, plain=float("inf"), values=10_000) == 1e-3
    assert limits.allowed(gradient=True, plain=0.5, values=10_000) == 0.6
    assert Budget(2e-6, 1e-5, 0).allowed(gradient=False, plain=1.0, values=10) == 2e-6
