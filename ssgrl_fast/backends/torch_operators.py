"""The functions of a backend whose kernels are operators of PyTorch: what base.py asks for, on top of the
operators' schemas (csrc/schemas.cpp). An operator returns an empty tensor for each gradient that is not asked for;
autograd
wants None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ssgrl_fast._utils.pytorch import is_exporting
from ssgrl_fast.reference.e4m3 import Fp8Gates


def functions(namespace: str, *, fp8: bool = False) -> Mapping[str, Callable[..., Any]]:
    """The functions of a :class:`ssgrl_fast.backends.Backend` by the operators ``namespace::<stem>[_backward]``; with
    fp8 also ``namespace::graph_propagation_fp8``."""
    call = _Operators(getattr(torch.ops, namespace))
    return {
        **({"graph_propagation_fp8_forward": call.propagation_fp8_forward} if fp8 else {}),
        "semantic_attention_forward": call.attention_forward,
        "semantic_attention_backward": call.attention_backward,
        "graph_propagation_forward": call.propagation_forward,
        "graph_propagation_backward": call.propagation_backward,
        "label_scores_forward": call.scores_forward,
        "label_scores_backward": call.scores_backward,
    }


class _Operators:
    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def attention_forward(self, u: Tensor, v: Tensor, p: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.ops.semantic_attention.default(u, v, p, features)
        return found

    def attention_backward(
        self,
        grad_pooled: Tensor | None,
        grad_attention: Tensor | None,
        u: Tensor,
        v: Tensor,
        p: Tensor,
        features: Tensor,
        attention: Tensor,
        need_features: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        d_u, d_v, d_p, d_features = self.ops.semantic_attention_backward.default(
            grad_pooled, grad_attention, u, v, p, features, attention, need_features
        )
        return d_u, d_v, d_p, d_features if need_features else None

    def propagation_forward(
        self,
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
        if not biases and is_exporting():  # AOTInductor's runtime cannot pass an empty list of tensors
            biases = [h0.new_zeros(weight.shape[0]) for weight in weights[:: max(1, len(weights) // 3)]]
        h_T, *saved = self.ops.graph_propagation.default(
            h0, adjacency, attention, features, weights, biases, steps, reset_gate == "official", save
        )
        return h_T, saved if save else []

    def propagation_backward(
        self,
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
        d_h0, d_attention, d_features, d_weights, d_biases = self.ops.graph_propagation_backward.default(
            grad,
            h0,
            adjacency,
            attention,
            features,
            weights,
            biases,
            saved,
            steps,
            reset_gate == "official",
            need_features,
        )
        return *_start(d_h0, d_attention, d_features, attention, need_features), d_weights, d_biases

    def propagation_fp8_forward(self, h0: Tensor, adjacency: Tensor, gates: Fp8Gates, steps: int) -> Tensor:
        h_T: Tensor = self.ops.graph_propagation_fp8.default(h0, adjacency, *gates, steps)
        return h_T

    def scores_forward(
        self,
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
        logits, *saved = self.ops.label_scores.default(
            h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c, save
        )
        return logits, saved if save else []

    def scores_backward(
        self,
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
        d_h_T, d_h0, d_attention, d_features, *d_weights = self.ops.label_scores_backward.default(
            grad, h_T, h0, attention, features, weight_o, weight_c, saved, need_features
        )
        return d_h_T, *_start(d_h0, d_attention, d_features, attention, need_features), *d_weights


def _start(
    d_h0: Tensor, d_attention: Tensor, d_features: Tensor, attention: Tensor | None, need_features: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if attention is None:
        return d_h0, None, None
    return None, d_attention, d_features if need_features else None
