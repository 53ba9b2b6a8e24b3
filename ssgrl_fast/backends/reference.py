"""The ``reference`` backend: the equations in plain PyTorch with their hand-written backwards; runs everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ssgrl_fast import reference
from ssgrl_fast.backends.base import Backend, Gradients, Implementation, Outputs, fp8_dtype
from ssgrl_fast.backends.calls import Fp8PropagationCall, GraphPropagationCall, LabelScoresCall, SemanticAttentionCall
from ssgrl_fast.reference.factors import split_gradient
from ssgrl_fast.reference.graph_propagation import graph_propagation_backward, graph_propagation_forward
from ssgrl_fast.reference.label_scores import label_scores_backward, label_scores_forward
from ssgrl_fast.reference.semantic_attention import semantic_attention_backward, semantic_attention_forward


def _attention_forward(call: SemanticAttentionCall, save: bool) -> Outputs:
    """The attention as a tensor of its own: torch.compile in torch 2.11 drops the gradient of an autograd.Function's
    output that another output was computed from."""
    pooled, attention = semantic_attention_forward(*call)
    attention = attention.clone()
    return (pooled, attention), [attention]


def _attention_backward(call: SemanticAttentionCall, grads: Any, saved: Any, need_features: bool) -> Gradients:
    (grad_pooled, grad_attention), (attention,) = grads, saved
    return semantic_attention_backward(grad_pooled, grad_attention, *call, attention)


def _propagation_forward(call: GraphPropagationCall, save: bool) -> Outputs:
    packed = call.gates.packed()
    h_T, *saved = graph_propagation_forward(call.h0, call.adjacency, *packed, call.steps, call.reset_gate)
    return (h_T,), saved


def _propagation_backward(call: GraphPropagationCall, grads: Any, saved: Any, need_features: bool) -> Gradients:
    (grad,), (states, gates), (weight_zr, _, weight_h, _) = grads, saved, call.gates.packed()
    d_h0, *d_packed = graph_propagation_backward(
        grad, call.adjacency, weight_zr, weight_h, states, gates, call.reset_gate
    )
    d_gates = call.gates.like(*d_packed)
    d_start, *d_factors = _to_factors(d_h0, call)
    return d_start, None, *d_factors, *d_gates.weights, *d_gates.biases


def _propagation_fp8_forward(call: Fp8PropagationCall, save: bool) -> Outputs:
    return (reference.graph_propagation_fp8(call.h0, call.adjacency, call.gates, steps=call.steps),), []


def _scores_forward(call: LabelScoresCall, save: bool) -> Outputs:
    logits, output = label_scores_forward(call.h_T, call.h0, call.weight_o, call.bias_o, call.weight_c, call.bias_c)
    return (logits,), [output]


def _scores_backward(call: LabelScoresCall, grads: Any, saved: Any, need_features: bool) -> Gradients:
    (grad,), (output,) = grads, saved
    d_h_T, d_h0, *d_weights = label_scores_backward(grad, call.h_T, call.h0, call.weight_o, call.weight_c, output)
    return d_h_T, *_to_factors(d_h0, call), *d_weights


def _to_factors(
    d_h0: Tensor, call: GraphPropagationCall | LabelScoresCall
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradient of h0 where it goes: to h0, attention and features."""
    if call.attention is None or call.features is None:
        return d_h0, None, None
    return None, *split_gradient(d_h0, call.attention, call.features)


BACKEND = Backend(
    name="reference",
    refuses=lambda stem, device, dtype: fp8_dtype(stem, dtype),
    operations={
        "semantic_attention": Implementation(_attention_forward, _attention_backward),
        "graph_propagation": Implementation(_propagation_forward, _propagation_backward),
        "label_scores": Implementation(_scores_forward, _scores_backward),
        "graph_propagation_fp8": Implementation(_propagation_fp8_forward),
    },
)


# The equations themselves, which PyTorch differentiates to any order; the factors of h0 take its gradient.


def _attention_equations(call: SemanticAttentionCall) -> tuple[Tensor, ...]:
    return reference.semantic_attention(*call)


def _propagation_equations(call: GraphPropagationCall) -> tuple[Tensor, ...]:
    h_T = reference.graph_propagation(
        call.h0,
        call.adjacency,
        *call.gates.packed(),
        steps=call.steps,
        attention=call.attention,
        features=call.features,
        reset_gate=call.reset_gate,
    )
    return (h_T,)


def _scores_equations(call: LabelScoresCall) -> tuple[Tensor, ...]:
    h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c = call
    factors = {"attention": attention, "features": features}
    return (reference.label_scores(h_T, h0, weight_o, bias_o, weight_c, bias_c, **factors),)


EQUATIONS: dict[str, Callable[[Any], tuple[Tensor, ...]]] = {
    "semantic_attention": _attention_equations,
    "graph_propagation": _propagation_equations,
    "label_scores": _scores_equations,
}
