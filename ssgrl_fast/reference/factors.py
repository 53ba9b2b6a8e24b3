"""The factors of h0 = attention · features: beside them, the gradient of h0 goes to them."""

from __future__ import annotations

import torch
from torch import Tensor


def initial_state(h0: Tensor, attention: Tensor | None, features: Tensor | None) -> Tensor:
    """h0 [B, C, D] itself, or the product of its factors attention [B, C, L] and features [B, L, D] (eq. 6)."""
    if attention is None or features is None:
        return h0
    return attention.to(features.dtype) @ features


def split_gradient(d_h0: Tensor, attention: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of attention and features from that of their product, d_h0 [B, C, D]."""
    d_attention = (d_h0 @ features.transpose(1, 2)).to(attention.dtype)
    d_features = attention.to(features.dtype).transpose(1, 2) @ d_h0
    return d_attention, d_features


def low_rank_pays(classes: int, locations: int, dim: int) -> bool:
    """Whether products with h0 are smaller on the L rows of the features (identity 4): L < C·D / (C + D)."""
    return locations * (classes + dim) < classes * dim


def low_rank_output(h0: Tensor, features: Tensor | None) -> bool:
    """Whether the h0 half of f_o is computed on the L rows of F (identity 4), for h0 [B, C, D] and features [B, L, D].

    Not in the reduced dtypes: each half would be rounded, and the halves can cancel.
    """
    exact = h0.dtype in (torch.float32, torch.float64)
    return features is not None and exact and low_rank_pays(h0.shape[1], features.shape[1], h0.shape[2])
