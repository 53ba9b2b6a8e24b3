"""The operator ``label_scores`` (eq. 10): its fakes, and its place under autograd.

Tensors travel flat: h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ssgrl_fast import reference
from ssgrl_fast.backends import Backend
from ssgrl_fast.ops.fakes import low_rank_pays, register_fake
from ssgrl_fast.ops.operation import Operation, Static, Tensors, register

_FEATURES = 3


def _run(backend: Backend, static: Static, tensors: Tensors, save: bool) -> tuple[tuple[Tensor, ...], Tensors]:
    logits, saved = backend.functions["label_scores_forward"](*tensors, save)
    return (logits,), tuple(saved)


def _run_backward(
    backend: Backend, static: Static, grads: Tensors, tensors: Tensors, saved: Tensors, needs: tuple[bool, ...]
) -> Tensors:
    function = backend.functions["label_scores_backward"]
    found: Tensors = function(grads[0], *tensors, list(saved), needs[_FEATURES])
    return found


def _reference(static: Static, tensors: Tensors) -> tuple[Tensor, ...]:
    h_T, h0, attention, features, *weights = tensors
    return (reference.label_scores(h_T, h0, *weights, attention=attention, features=features),)


register(Operation(stem="label_scores", run=_run, run_backward=_run_backward, reference=_reference))


@register_fake("label_scores")
def _fake(
    h_T: Tensor,
    h0: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weight_o: Tensor,
    bias_o: Tensor | None,
    weight_c: Tensor,
    bias_c: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    images, classes = h_T.shape[:2]
    outputs = weight_o.shape[0]
    output = h_T.new_empty((images * classes, outputs) if save else (0,))
    on_locations = h_T.new_empty(0)
    if save and features is not None and low_rank_pays(h0, features):
        on_locations = h_T.new_empty(images * features.shape[1], outputs)
    return h_T.new_empty(images, classes), output, on_locations


@register_fake("label_scores_backward")
def _fake_backward(
    grad: Tensor,
    h_T: Tensor,
    h0: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weight_o: Tensor,
    weight_c: Tensor,
    saved: Sequence[Tensor],
    need_features: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    nothing = h_T.new_empty(0)
    if attention is None or features is None:
        start = (h0.new_empty(h0.shape), nothing, h_T.new_empty(0))
    else:
        d_features = features.new_empty(features.shape if need_features else (0,))
        start = (nothing, attention.new_empty(attention.shape), d_features)
    (outputs, _), classes = weight_o.shape, weight_c.shape[0]
    weights = (h_T.new_empty(outputs), weight_c.new_empty(weight_c.shape), h_T.new_empty(classes))
    return (h_T.new_empty(h_T.shape), *start, weight_o.new_empty(weight_o.shape), *weights)
