"""Output layer and per-class classifiers, eq. 10 of the paper, in plain PyTorch.

Shapes: B images, C classes, D state channels, O output channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ssgrl_fast.reference.factors import initial_state
from ssgrl_fast.reference.numerics import sech_squared, tanh, widen


def label_scores(
    h_T: Tensor,
    h0: Tensor,
    weight_o: Tensor,
    bias_o: Tensor | None,
    weight_c: Tensor,
    bias_c: Tensor | None,
    *,
    attention: Tensor | None = None,
    features: Tensor | None = None,
) -> Tensor:
    """Score each class from its final and its first state.

    Args:
        h_T, h0: [B, C, D].
        weight_o, bias_o: [O, 2D] over [h_T, h0] and [O] or None, f_o of eq. 10.
        weight_c, bias_c: [C, O] and [C] or None, one classifier per class.
        attention, features: [B, C, L] and [B, L, D], the factors of h0; h0 then gets no gradient and they get all of
            it.

    Returns:
        logits [B, C].
    """
    start = initial_state(h0, attention, features)
    logits, _ = label_scores_forward(h_T, start, weight_o, bias_o, weight_c, bias_c)
    return logits


def label_scores_forward(
    h_T: Tensor,  # [B, C, D]
    h0: Tensor,  # [B, C, D]
    weight_o: Tensor,  # [O, 2D]
    bias_o: Tensor | None,  # [O]
    weight_c: Tensor,  # [C, O]
    bias_c: Tensor | None,  # [C]
) -> tuple[Tensor, Tensor]:
    """logits [B, C], and for the backward f_o's output before its tanh, [B, C, O]."""
    output = linear(torch.cat([h_T, h0], dim=-1), weight_o, bias_o)
    # eq. 10; as a product and a sum, with the bias behind it, OpenVINO 2026.4 computes it wrong from B = 2 on
    logits = torch.einsum("bco,co->bc", tanh(output), weight_c).contiguous()
    return (logits if bias_c is None else logits + bias_c), output


def label_scores_backward(
    grad: Tensor,  # [B, C], of the logits
    h_T: Tensor,  # [B, C, D]
    h0: Tensor,  # [B, C, D]
    weight_o: Tensor,  # [O, 2D]
    weight_c: Tensor,  # [C, O]
    output: Tensor,  # [B, C, O]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h_T, h0, weight_o, bias_o, weight_c and bias_c, by hand."""
    d_output = (widen(grad).unsqueeze(-1) * weight_c * sech_squared(widen(output))).to(output.dtype)
    d_h_T, d_h0 = (d_output @ weight_o).chunk(2, dim=-1)
    d_weight_o = torch.einsum("bco,bcx->ox", d_output, torch.cat([h_T, h0], dim=-1))
    d_weight_c = torch.einsum("bc,bco->co", grad, torch.tanh(output))
    return d_h_T, d_h0, d_weight_o, d_output.sum((0, 1)), d_weight_c, grad.sum(0)
