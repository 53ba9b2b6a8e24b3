"""The training loss, eq. 12, against a loop over its entries."""

from __future__ import annotations

import math

import pytest
import torch

from ssgrl_fast.losses import multilabel_loss


def hand_loss(logits: torch.Tensor, targets: torch.Tensor, difficult: str) -> tuple[float, int]:
    total, counted = 0.0, 0
    for scores, codes in zip(logits.tolist(), targets.tolist(), strict=True):
        for score, code in zip(scores, codes, strict=True):
            if code == 0 and difficult == "ignore":
                continue
            present = code == 1 or (code == 0 and difficult == "positive")
            probability = 1 / (1 + math.exp(-score))
            total -= math.log(probability if present else 1 - probability)
            counted += 1
    return total, counted


@pytest.mark.parametrize("difficult", ["ignore", "positive", "negative"])
def test_loss_is_eq_12_by_hand(difficult: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(-1, 2, (5, 7), generator=generator).to(torch.int8)
    assert {-1, 0, 1} == set(targets.flatten().tolist())
    total, counted = hand_loss(logits, targets, difficult)
    assert multilabel_loss(logits, targets, difficult=difficult).item() == pytest.approx(total, rel=1e-12)
    mean = multilabel_loss(logits, targets, reduction="mean", difficult=difficult)
    assert mean.item() == pytest.approx(total / counted, rel=1e-12)


def test_loss_of_reduced_precision_is_float32_and_ignored_entries_get_no_gradient() -> None:
    logits = torch.tensor([[3.0, -2.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = multilabel_loss(logits, torch.tensor([[1, 0]], dtype=torch.int8))
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad is not None and logits.grad[0, 1] == 0 and logits.grad[0, 0] != 0
    nothing = multilabel_loss(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int8), reduction="mean")
    assert nothing.item() == 0


def test_loss_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"targets must be \[2, 3\]"):
        multilabel_loss(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.int8))
    with pytest.raises(ValueError, match="reduction"):
        multilabel_loss(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int8), reduction="median")
