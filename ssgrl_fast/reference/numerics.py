"""Derivatives that keep their digits when the activation saturates, and the dtypes beside reduced ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssgrl_fast._utils.pytorch import is_exporting


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


def tanh(x: Tensor) -> Tensor:
    """``torch.tanh`` whose derivatives of every order keep their digits when it saturates. Any shape, any float dtype.

    PyTorch takes them from 1 - t², which cancels there. Here t is 1 - 2σ(-2|x|), and σ' = σ(1 - σ) does not cancel
    below 1/2. In the reduced dtypes, and where nothing is differentiated, it is ``torch.tanh``.
    """
    transformed = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    if not _is_exact(x) or not (x.requires_grad or transformed):
        return torch.tanh(x)
    size = x.abs()
    return torch.where(size < 0.5, torch.tanh(x), x.sign() * (1 - 2 * torch.sigmoid(-2 * size)))


def sigmoid_pair(x: Tensor) -> tuple[Tensor, Tensor]:
    """σ(x) and 1 - σ(x), whose values and derivatives keep their digits as those of :func:`tanh` do."""
    if not _is_exact(x):
        y = torch.sigmoid(x)
        return y, 1 - y
    above = x > 0
    below = torch.sigmoid(torch.where(above, -x, x))
    return torch.where(above, 1 - below, below), torch.where(above, below, 1 - below)


def _is_exact(x: Tensor) -> bool:
    """Whether digits are to be kept: not in the reduced dtypes, nor in an exported graph, which only infers."""
    return x.dtype in (torch.float32, torch.float64) and not is_exporting()


def widen(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is float32 or float64."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of p and attention beside features of this dtype: float64 beside float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
