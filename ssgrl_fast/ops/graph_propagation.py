"""The operator ``graph_propagation`` (eq. 7–9): its fakes, and its place under autograd.

Tensors travel flat: h0, adjacency, attention, features, then the weights, then the biases. The static part is
(steps, reset_gate, number of weights).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ssgrl_fast import reference
from ssgrl_fast.backends import Backend
from ssgrl_fast.backends.reference import pack_biases, pack_weights
from ssgrl_fast.ops.fakes import low_rank_pays, register_fake
from ssgrl_fast.ops.operation import Operation, Static, Tensors, register

_LEADING = 4  # h0, adjacency, attention, features
_FEATURES = 3


def _run(backend: Backend, static: Static, tensors: Tensors, save: bool) -> tuple[tuple[Tensor, ...], Tensors]:
    steps, reset_gate, count = static
    start, weights, biases = _split(tensors, count)
    h_T, saved = backend.functions["graph_propagation_forward"](*start, weights, biases, steps, reset_gate, save)
    return (h_T,), tuple(saved)


def _run_backward(
    backend: Backend, static: Static, grads: Tensors, tensors: Tensors, saved: Tensors, needs: tuple[bool, ...]
) -> Tensors:
    steps, reset_gate, count = static
    start, weights, biases = _split(tensors, count)
    d_h0, d_attention, d_features, d_weights, d_biases = backend.functions["graph_propagation_backward"](
        grads[0], *start, weights, biases, list(saved), steps, reset_gate, needs[_FEATURES]
    )
    return (d_h0, None, d_attention, d_features, *d_weights, *d_biases)


def _reference(static: Static, tensors: Tensors) -> tuple[Tensor, ...]:
    steps, reset_gate, count = static
    (h0, adjacency, attention, features), weights, biases = _split(tensors, count)
    (weight_zr, weight_h), (bias_zr, bias_h) = pack_weights(weights), pack_biases(biases)
    options = {"steps": steps, "attention": attention, "features": features, "reset_gate": reset_gate}
    return (reference.graph_propagation(h0, adjacency, weight_zr, bias_zr, weight_h, bias_h, **options),)


def _split(tensors: Tensors, count: int) -> tuple[Tensors, list[Tensor], list[Tensor]]:
    start, weights, biases = tensors[:_LEADING], tensors[_LEADING : _LEADING + count], tensors[_LEADING + count :]
    return start, list(weights), list(biases)


register(Operation(stem="graph_propagation", run=_run, run_backward=_run_backward, reference=_reference))


@register_fake("graph_propagation")
def _fake(
    h0: Tensor,
    adjacency: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    steps: int,
    tied: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, classes, dim = h0.shape
    h_T = h0.new_empty(images, classes, dim)
    if not save:
        return h_T, h0.new_empty(0), h0.new_empty(0), h0.new_empty(0)
    states = h0.new_empty(steps, images * classes, 4 * dim)
    gates = h0.new_empty(steps, images * classes, 3 * dim)
    if features is None or not low_rank_pays(h0, features):
        return h_T, states, gates, h0.new_empty(0)
    return h_T, states, gates, h0.new_empty((7 if tied else 8) * images * features.shape[1], dim)


@register_fake("graph_propagation_backward")
def _fake_backward(
    grad: Tensor,
    h0: Tensor,
    adjacency: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Sequence[Tensor],
    steps: int,
    tied: bool,
    need_features: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    d_weights, d_biases = [w.new_empty(w.shape) for w in weights], [b.new_empty(b.shape) for b in biases]
    if attention is None or features is None:
        return h0.new_empty(h0.shape), h0.new_empty(0), h0.new_empty(0), d_weights, d_biases
    d_features = features.new_empty(features.shape if need_features else (0,))
    return h0.new_empty(0), attention.new_empty(attention.shape), d_features, d_weights, d_biases
