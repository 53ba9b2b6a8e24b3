"""The training loss, eq. 12, against a loop over its entries."""

from __future__ import annotations

import math

import pytest
import torch

from ssgrl_fast.training.losses import asymmetric_loss, multilabel_loss


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


# ---- the asymmetric loss ----


@pytest.mark.parametrize("difficult", ["ignore", "positive", "negative"])
@pytest.mark.parametrize(("negative", "positive", "margin"), [(4.0, 0.0, 0.05), (2.0, 1.0, 0.0), (0.0, 0.0, 0.2)])
def test_asymmetric_loss_is_its_formula_by_hand(
    negative: float, positive: float, margin: float, difficult: str
) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    targets = torch.randint(-1, 2, (6, 5), generator=generator).to(torch.int8)
    expected = 0.0
    for scores, codes in zip(logits.tolist(), targets.tolist(), strict=True):
        for score, code in zip(scores, codes, strict=True):
            p = 1 / (1 + math.exp(-score))
            less = max(p - margin, 0.0)
            if code == 1 or (code == 0 and difficult == "positive"):
                expected -= (1 - p) ** positive * math.log(p)
            elif code == -1 or difficult == "negative":
                expected -= less**negative * math.log(1 - less)
    given = {"gamma_negative": negative, "gamma_positive": positive, "margin": margin, "difficult": difficult}
    assert asymmetric_loss(logits, targets, **given).item() == pytest.approx(expected, rel=1e-12)


def test_asymmetric_loss_without_asymmetry_is_eq_12_with_its_gradient() -> None:
    logits = torch.tensor([[60.0, -60.0, 2.0], [-150.0, 150.0, 0.5]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, -1, -1], [1, -1, 0]], dtype=torch.int8)
    losses = [
        asymmetric_loss(logits, targets, gamma_negative=0, gamma_positive=0, margin=0),
        multilabel_loss(logits, targets),
    ]
    grads = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-12)
    assert torch.allclose(*grads, rtol=1e-12, atol=1e-20)  # PyTorch rounds 1 - sigmoid(60) to 0


def test_asymmetric_loss_gives_its_focusing_factor_no_gradient_and_easy_negatives_none_at_all() -> None:
    logits = torch.tensor([[-4.0, 1.0]], dtype=torch.float64, requires_grad=True)  # p = 0.018 < margin, and 0.73
    targets = torch.tensor([[-1, -1]], dtype=torch.int8)
    (gradient,) = torch.autograd.grad(asymmetric_loss(logits, targets), logits)
    p = 1 / (1 + math.exp(-1.0))
    less = p - 0.05
    assert gradient[0, 0] == 0
    assert gradient[0, 1].item() == pytest.approx(less**4 * p * (1 - p) / (1 - less), rel=1e-12)
    for dtype in (torch.bfloat16, torch.float32):
        extreme = torch.tensor([[-200.0, 200.0, 200.0, -200.0]], dtype=dtype, requires_grad=True)
        loss = asymmetric_loss(extreme, torch.tensor([[1, 1, -1, -1]], dtype=torch.int8))
        loss.backward()
        assert bool(loss.isfinite()) and extreme.grad is not None and bool(extreme.grad.isfinite().all())


def test_asymmetric_loss_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="margin from 0 to below 1, got 4.0, 0.0 and 1"):
        asymmetric_loss(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int8), margin=1)
    with pytest.raises(ValueError, match=r"asymmetric_loss: targets must be \[2, 3\]"):
        asymmetric_loss(torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.int8))
