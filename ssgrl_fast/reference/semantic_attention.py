"""Semantic attention, eq. 3–6 of the paper, in plain PyTorch.

Shapes: B images, L locations, C classes, K joint channels, D feature channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssgrl_fast.reference.numerics import sech_squared, tanh


def semantic_attention(u: Tensor, v: Tensor, p: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Attend to the locations that matter to each class and pool the features there.

    Args:
        u: [B, L, K], the features in the joint space, ``features @ U``.
        v: [C, K], the class words in the joint space, ``words @ V``.
        p: [K], P·w_a: eq. 3's output map folded into eq. 4's score. float32, or float64 with float64 features.
        features: [B, L, D].

    Returns:
        pooled [B, C, D] in the features' dtype and attention [B, C, L] in p's dtype, each row of which sums to 1.
    """
    return semantic_attention_forward(u, v, p, features)


def semantic_attention_forward(u: Tensor, v: Tensor, p: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    joint = tanh(u.unsqueeze(1) * v.unsqueeze(1))  # eq. 3 before P: [B, C, L, K]
    scores = joint.to(p.dtype) @ p  # eq. 4, its constant cancelled by eq. 5: [B, C, L]
    attention = torch.softmax(scores, dim=-1)  # eq. 5
    pooled = attention.to(features.dtype) @ features  # eq. 6: [B, C, D]
    return pooled, attention


def semantic_attention_backward(
    grad_pooled: Tensor | None,  # [B, C, D]
    grad_attention: Tensor | None,  # [B, C, L]
    u: Tensor,  # [B, L, K]
    v: Tensor,  # [C, K]
    p: Tensor,  # [K]
    features: Tensor,  # [B, L, D]
    attention: Tensor,  # [B, C, L]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, v, p and features, by hand: one further evaluation of the tanh serves all of them."""
    total = torch.zeros_like(attention) if grad_attention is None else grad_attention
    if grad_pooled is None:
        d_features = torch.zeros_like(features)
    else:
        total = total + (grad_pooled @ features.transpose(1, 2)).to(attention.dtype)
        d_features = attention.to(features.dtype).transpose(1, 2) @ grad_pooled
    d_scores = attention * (total - (attention * total).sum(-1, keepdim=True))  # through eq. 5
    product = u.unsqueeze(1) * v.unsqueeze(1)  # [B, C, L, K]
    d_p = torch.einsum("bcl,bclk->k", d_scores, torch.tanh(product).to(p.dtype))
    d_product = d_scores.unsqueeze(-1) * p * sech_squared(product).to(p.dtype)
    d_u = torch.einsum("bclk,ck->blk", d_product, v.to(p.dtype)).to(u.dtype)
    d_v = torch.einsum("bclk,blk->ck", d_product, u.to(p.dtype)).to(v.dtype)
    return d_u, d_v, d_p, d_features
