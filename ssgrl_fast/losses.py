"""The training loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .checks import check_choice
from .labels import DIFFICULT_RULES


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
    check_choice("multilabel_loss", "difficult", difficult, DIFFICULT_RULES)
    if logits.shape != targets.shape:
        raise ValueError(f"multilabel_loss: targets must be {list(logits.shape)} as logits, got {list(targets.shape)}")
    exact = logits if logits.dtype == torch.float64 else logits.float()
    positive = targets >= 0 if difficult == "positive" else targets > 0
    counted = (targets != 0).to(exact.dtype) if difficult == "ignore" else torch.ones_like(exact)
    total = (binary_cross_entropy_with_logits(exact, positive.to(exact.dtype), reduction="none") * counted).sum()
    return total if reduction == "sum" else total / counted.sum().clamp(min=1)
