"""The factors of h0 = attention · features: beside them, the gradient of h0 goes to them."""

from __future__ import annotations

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
