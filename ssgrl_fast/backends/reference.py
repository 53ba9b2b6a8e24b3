"""The ``reference`` backend: the equations in plain PyTorch with their hand-written backwards; runs everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssgrl_fast.backends.base import Backend, fp8_dtype
from ssgrl_fast.reference.e4m3 import Fp8Gates
from ssgrl_fast.reference.factors import split_gradient
from ssgrl_fast.reference.graph_propagation import graph_propagation_backward, graph_propagation_forward
from ssgrl_fast.reference.graph_propagation_fp8 import graph_propagation_fp8
from ssgrl_fast.reference.label_scores import label_scores_backward, label_scores_forward
from ssgrl_fast.reference.semantic_attention import semantic_attention_backward, semantic_attention_forward

PACKED = 2  # weight_zr and weight_h; otherwise the six stored blocks


def _attention_forward(u: Tensor, v: Tensor, p: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """The attention as a tensor of its own: torch.compile in torch 2.11 drops the gradient of an autograd.Function's
    output that another output was computed from."""
    pooled, attention = semantic_attention_forward(u, v, p, features)
    return pooled, attention.clone()


def _attention_backward(
    grad_pooled: Tensor | None,
    grad_attention: Tensor | None,
    u: Tensor,
    v: Tensor,
    p: Tensor,
    features: Tensor,
    attention: Tensor,
    need_features: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    d_u, d_v, d_p, d_features = semantic_attention_backward(grad_pooled, grad_attention, u, v, p, features, attention)
    return d_u, d_v, d_p, d_features if need_features else None


def pack_weights(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """weight_zr [2D, 3D] and weight_h [D, 3D], from themselves or from the blocks w_z, u_z, w_r, u_r, w_h, u_h."""
    if len(weights) == PACKED:
        return weights[0], weights[1]
    w_z, u_z, w_r, u_r, w_h, u_h = weights
    weight_zr = torch.cat([torch.cat([u_z, w_z], dim=1), torch.cat([u_r, w_r], dim=1)])
    return weight_zr, torch.cat([w_h, u_h], dim=1)


def pack_biases(biases: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """bias_zr [2D] and bias_h [D], from nothing, from themselves or from b_z, b_r, b_h."""
    if not biases:
        return None, None
    return (biases[0] if len(biases) == PACKED else torch.cat(list(biases[:2]))), biases[-1]


def _unpack_weights(d_weight_zr: Tensor, d_weight_h: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    if len(like) == PACKED:
        return [d_weight_zr, d_weight_h]
    dim = d_weight_h.shape[0]
    (d_z, d_r), (d_message, d_state) = d_weight_zr.split(dim), d_weight_h.split([2 * dim, dim], dim=1)
    return [d_z[:, dim:], d_z[:, :dim], d_r[:, dim:], d_r[:, :dim], d_message, d_state]


def _propagation_forward(
    h0: Tensor,
    adjacency: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    steps: int,
    reset_gate: str,
    save: bool,
) -> tuple[Tensor, list[Tensor]]:
    weight_zr, weight_h = pack_weights(weights)
    bias_zr, bias_h = pack_biases(biases)
    h_T, *saved = graph_propagation_forward(h0, adjacency, weight_zr, bias_zr, weight_h, bias_h, steps, reset_gate)
    return h_T, saved if save else []


def _propagation_backward(
    grad: Tensor,
    h0: Tensor,
    adjacency: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Sequence[Tensor],
    steps: int,
    reset_gate: str,
    need_features: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor], list[Tensor]]:
    weight_zr, weight_h = pack_weights(weights)
    states, gates = saved
    d_h0, d_weight_zr, d_bias_zr, d_weight_h, d_bias_h = graph_propagation_backward(
        grad, adjacency, weight_zr, weight_h, states, gates, reset_gate
    )
    d_weights = _unpack_weights(d_weight_zr, d_weight_h, weights)
    d_biases = [d_bias_zr, d_bias_h] if len(weights) == PACKED else [*d_bias_zr.chunk(2), d_bias_h]
    d_start = _to_factors(d_h0, attention, features, need_features)
    return *d_start, d_weights, d_biases if biases else []


def _scores_forward(
    h_T: Tensor,
    h0: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weight_o: Tensor,
    bias_o: Tensor | None,
    weight_c: Tensor,
    bias_c: Tensor | None,
    save: bool,
) -> tuple[Tensor, list[Tensor]]:
    logits, output = label_scores_forward(h_T, h0, weight_o, bias_o, weight_c, bias_c)
    return logits, [output] if save else []


def _scores_backward(
    grad: Tensor,
    h_T: Tensor,
    h0: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weight_o: Tensor,
    bias_o: Tensor | None,
    weight_c: Tensor,
    bias_c: Tensor | None,
    saved: Sequence[Tensor],
    need_features: bool,
) -> tuple[Tensor | None, ...]:
    d_h_T, d_h0, *d_weights = label_scores_backward(grad, h_T, h0, weight_o, weight_c, *saved)
    return d_h_T, *_to_factors(d_h0, attention, features, need_features), *d_weights


def _to_factors(
    d_h0: Tensor, attention: Tensor | None, features: Tensor | None, need_features: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if attention is None or features is None:
        return d_h0, None, None
    d_attention, d_features = split_gradient(d_h0, attention, features)
    return None, d_attention, d_features if need_features else None


def _fp8_forward(h0: Tensor, adjacency: Tensor, gates: Fp8Gates, steps: int) -> Tensor:
    return graph_propagation_fp8(h0, adjacency, gates, steps=steps)


BACKEND = Backend(
    name="reference",
    refuses=lambda stem, device_type, dtype: fp8_dtype(stem, dtype),
    functions={
        "semantic_attention_forward": _attention_forward,
        "semantic_attention_backward": _attention_backward,
        "graph_propagation_forward": _propagation_forward,
        "graph_propagation_backward": _propagation_backward,
        "label_scores_forward": _scores_forward,
        "label_scores_backward": _scores_backward,
        "graph_propagation_fp8_forward": _fp8_forward,
    },
)
