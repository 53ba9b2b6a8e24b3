"""Derivatives that keep their digits when the activation saturates, and the dtypes beside reduced ones."""

from __future__ import annotations

import torch
from torch import Tensor


def sech_squared(x: Tensor) -> Tensor:
    """Derivative of tanh: 4q / (1 + q)², q = e^(−2|x|). Any shape, any float dtype.

    ``1 - tanh(x) ** 2`` cancels for large |x|; this form keeps full relative accuracy until q underflows. Computed in
    float32 or better and rounded once.
    """
    q = torch.exp(-2 * widen(x).abs())
    return (4 * q / (1 + q) ** 2).to(x.dtype)


def sigmoid_slope(x: Tensor) -> Tensor:
    """Derivative of the logistic function: σ(x)·σ(−x). Any shape, any float dtype; rounded once."""
    wide = widen(x)
    return (torch.sigmoid(wide) * torch.sigmoid(-wide)).to(x.dtype)


def widen(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float32 or float64."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of p and attention beside features of this dtype: float64 beside float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
