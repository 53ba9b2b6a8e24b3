"""The training losses: cross entropy (eq. 12), and the asymmetric loss of the modern recipe."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast.labels.matrix import DIFFICULT_RULES
from ssgrl_fast.training.options import LossOptions


def multilabel_loss(logits: Tensor, targets: Tensor, *, reduction: str = "sum", difficult: str = "ignore") -> Tensor:
    """Cross entropy of eq. 12 (with the minus sign that the paper's print lacks).

    Args:
        logits: [B, C] scores s of eq. 10; computed in float32 or better.
        targets: int8 [B, C]: 1 present, 0 only difficult objects, -1 absent.
        reduction: "sum" over samples and classes (eq. 12), or "mean" over the entries that count (D16).
        difficult: "ignore" leaves entries of code 0 out, "positive" and "negative" count them so (D27).

    Returns:
        A scalar, float32 (float64 with float64 logits). Without any entry that counts it is 0.

    Raises:
        ValueError: shapes differ, or an unknown reduction or rule.
    """
    check_choice("multilabel_loss", "reduction", reduction, ("sum", "mean"))
    exact, positive, counted = _entries("multilabel_loss", logits, targets, difficult)
    total = (binary_cross_entropy_with_logits(exact, positive, reduction="none") * counted).sum()
    return total if reduction == "sum" else total / counted.sum().clamp(min=1)


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_negative: float = 4.0,
    gamma_positive: float = 0.0,
    margin: float = 0.05,
    difficult: str = "ignore",
) -> Tensor:
    """Asymmetric loss (ASL; Ridnik et al., ICCV 2021, eq. 7), summed over samples and classes.

    With p = sigmoid(s) and p_m = max(p − margin, 0), a positive costs ``−(1 − p)^γ+ · log p`` and a negative
    ``−p_m^γ− · log(1 − p_m)``. As in its authors' training, the two focusing factors get no gradient. Both exponents
    and the margin at 0 give the cross entropy of eq. 12.

    Args:
        logits: [B, C] scores s of eq. 10; computed in float32 or better.
        targets: int8 [B, C]: 1 present, 0 only difficult objects, -1 absent.
        gamma_negative, gamma_positive: the exponents γ− and γ+, at least 0.
        margin: probability by which negatives are discounted, from 0 to below 1.
        difficult: "ignore" leaves entries of code 0 out, "positive" and "negative" count them so (D27).

    Returns:
        A scalar, float32 (float64 with float64 logits).

    Raises:
        ValueError: shapes differ, an unknown rule, a negative exponent, a margin outside 0 … 1.
    """
    if min(gamma_negative, gamma_positive) < 0 or not 0 <= margin < 1:
        raise ValueError(
            "asymmetric_loss: gamma_negative and gamma_positive must be at least 0 and margin from 0 to below 1, got "
            f"{gamma_negative}, {gamma_positive} and {margin}"
        )
    exact, positive, counted = _entries("asymmetric_loss", logits, targets, difficult)
    probability = exact.sigmoid()
    shifted = (probability - margin).clamp(min=0)
    # without a margin log(1 - p) comes from the logit, which does not round to log 0
    log_absent = logsigmoid(-exact) if margin == 0 else torch.log1p(-shifted)
    factor = torch.where(positive > 0, (1 - probability) ** gamma_positive, shifted**gamma_negative).detach()
    return -(factor * torch.where(positive > 0, logsigmoid(exact), log_absent) * counted).sum()


def loss_sums(logits: Tensor, targets: Tensor, options: LossOptions) -> tuple[Tensor, Tensor]:
    """The summed loss of images, and how many entries it counts: what batches and processes add up.

    Args:
        logits: [B, C] scores s of eq. 10; B may be 0.
        targets: int8 [B, C]: 1 present, 0 only difficult objects, -1 absent.
        options: loss ("sum" and "mean" are the same here), asymmetry and difficult; loss and difficult must be set.

    Returns:
        The sum, a scalar, float32 (float64 with float64 logits); the number, a scalar, int64.

    Raises:
        ValueError: as :func:`multilabel_loss` and :func:`asymmetric_loss`.
    """
    difficult = options.difficult or ""  # None is no rule either
    counted = (targets != 0).sum() if difficult == "ignore" else torch.tensor(targets.numel(), device=targets.device)
    if options.loss != "asymmetric":
        return multilabel_loss(logits, targets, reduction="sum", difficult=difficult), counted
    negative, positive, margin = options.asymmetry
    shape = {"gamma_negative": negative, "gamma_positive": positive, "margin": margin}
    return asymmetric_loss(logits, targets, **shape, difficult=difficult), counted


def _entries(operation: str, logits: Tensor, targets: Tensor, difficult: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float32 or better, which entries are positive and which count, the last two as 0 or 1; all [B, C]."""
    check_choice(operation, "difficult", difficult, DIFFICULT_RULES)
    if logits.shape != targets.shape:
        raise ValueError(f"{operation}: targets must be {list(logits.shape)} as logits, got {list(targets.shape)}")
    exact = logits if logits.dtype == torch.float64 else logits.float()
    positive = targets >= 0 if difficult == "positive" else targets > 0
    counted = (targets != 0).to(exact.dtype) if difficult == "ignore" else torch.ones_like(exact)
    return exact, positive.to(exact.dtype), counted
