"""The ``cpu`` backend: the compiled kernels of csrc/cpu, reached through the operators that csrc/ops.cpp declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssgrl_fast import _extension
from ssgrl_fast.backends.base import Backend

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_MISSING = _extension.library()
_ops: Any = torch.ops.ssgrl_fast


def _refuses(stem: str, device_type: str, dtype: torch.dtype) -> str | None:
    if _MISSING is not None:
        return _MISSING
    if device_type != "cpu":
        return f"it runs on cpu tensors, not on {device_type}"
    if dtype not in _DTYPES:
        return f"it computes in float32, float64 and bfloat16, not in {str(dtype).removeprefix('torch.')}"
    return None


def _attention_forward(u: Tensor, v: Tensor, p: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    return _ops.semantic_attention.default(u, v, p, features)


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
    d_u, d_v, d_p, d_features = _ops.semantic_attention_backward.default(
        grad_pooled, grad_attention, u, v, p, features, attention, need_features
    )
    return d_u, d_v, d_p, d_features if need_features else None


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
    h_T, *saved = _ops.graph_propagation.default(
        h0, adjacency, attention, features, weights, biases, steps, reset_gate == "official", save
    )
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
    d_h0, d_attention, d_features, d_weights, d_biases = _ops.graph_propagation_backward.default(
        grad, h0, adjacency, attention, features, weights, biases, saved, steps, reset_gate == "official", need_features
    )
    return *_start(d_h0, d_attention, d_features, attention, need_features), d_weights, d_biases


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
    logits, *saved = _ops.label_scores.default(h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c, save)
    return logits, saved if save else []


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
    d_h_T, d_h0, d_attention, d_features, *d_weights = _ops.label_scores_backward.default(
        grad, h_T, h0, attention, features, weight_o, weight_c, saved, need_features
    )
    return d_h_T, *_start(d_h0, d_attention, d_features, attention, need_features), *d_weights


def _start(
    d_h0: Tensor, d_attention: Tensor, d_features: Tensor, attention: Tensor | None, need_features: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """An operator returns an empty tensor for each gradient that is not asked for; autograd wants None."""
    if attention is None:
        return d_h0, None, None
    return None, d_attention, d_features if need_features else None


BACKEND = Backend(
    name="cpu",
    refuses=_refuses,
    functions={
        "semantic_attention_forward": _attention_forward,
        "semantic_attention_backward": _attention_backward,
        "graph_propagation_forward": _propagation_forward,
        "graph_propagation_backward": _propagation_backward,
        "label_scores_forward": _scores_forward,
        "label_scores_backward": _scores_backward,
    },
)
