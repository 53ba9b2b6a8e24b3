"""A backend whose kernels are operators of PyTorch: base.py's functions on top of the schemas of csrc/schemas.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ssgrl_fast._utils.pytorch import is_exporting
from ssgrl_fast.backends.base import Gradients, Implementation, Outputs
from ssgrl_fast.backends.calls import Fp8PropagationCall, GraphPropagationCall, LabelScoresCall, SemanticAttentionCall


def operations(namespace: str, *, fp8: bool = False) -> Mapping[str, Implementation]:
    """The operations of a :class:`ssgrl_fast.backends.Backend` by the operators ``namespace::<stem>[_backward]``; with
    fp8 also ``namespace::graph_propagation_fp8``."""
    own = _Operators(getattr(torch.ops, namespace))
    return {
        **({"graph_propagation_fp8": Implementation(own.propagation_fp8_forward)} if fp8 else {}),
        "semantic_attention": Implementation(own.attention_forward, own.attention_backward),
        "graph_propagation": Implementation(own.propagation_forward, own.propagation_backward),
        "label_scores": Implementation(own.scores_forward, own.scores_backward),
    }


class _Operators:
    """An operator gives an empty tensor for each gradient that has no place to go; autograd leaves it out."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def attention_forward(self, call: SemanticAttentionCall, save: bool) -> Outputs:
        pooled, attention = self.ops.semantic_attention.default(*call)
        return (pooled, attention), [attention]

    def attention_backward(self, call: SemanticAttentionCall, grads: Any, saved: Any, need_features: bool) -> Gradients:
        gradients: Gradients = self.ops.semantic_attention_backward.default(*grads, *call, *saved, need_features)
        return gradients

    def propagation_forward(self, call: GraphPropagationCall, save: bool) -> Outputs:
        h0, adjacency, attention, features, (weights, biases), steps, reset_gate = call
        if not biases and is_exporting():  # AOTInductor's runtime cannot pass an empty list of tensors
            biases = call.gates.zero_biases()
        h_T, *saved = self.ops.graph_propagation.default(
            h0, adjacency, attention, features, weights, biases, steps, reset_gate == "official", save
        )
        return (h_T,), saved

    def propagation_backward(
        self, call: GraphPropagationCall, grads: Any, saved: Any, need_features: bool
    ) -> Gradients:
        h0, adjacency, attention, features, (weights, biases), steps, reset_gate = call
        tensors = (*grads, h0, adjacency, attention, features, weights, biases, saved)
        d_h0, d_attention, d_features, d_weights, d_biases = self.ops.graph_propagation_backward.default(
            *tensors, steps, reset_gate == "official", need_features
        )
        return d_h0, None, d_attention, d_features, *d_weights, *d_biases

    def propagation_fp8_forward(self, call: Fp8PropagationCall, save: bool) -> Outputs:
        h_T = self.ops.graph_propagation_fp8.default(call.h0, call.adjacency, *call.gates, call.steps)
        return (h_T,), []

    def scores_forward(self, call: LabelScoresCall, save: bool) -> Outputs:
        logits, *saved = self.ops.label_scores.default(*call, save)
        return (logits,), saved

    def scores_backward(self, call: LabelScoresCall, grads: Any, saved: Any, need_features: bool) -> Gradients:
        h_T, h0, attention, features, weight_o, _, weight_c, _ = call
        gradients: Gradients = self.ops.label_scores_backward.default(
            *grads, h_T, h0, attention, features, weight_o, weight_c, saved, need_features
        )
        return gradients
