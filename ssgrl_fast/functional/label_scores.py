"""Output layer and classifiers (eq. 10): the operation for users, and the shape functions of its operators."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ssgrl_fast.backends.calls import LabelScoresCall
from ssgrl_fast.functional.arguments import Signature, check_factors
from ssgrl_fast.functional.autograd import run
from ssgrl_fast.functional.fakes import register_fake
from ssgrl_fast.reference.factors import low_rank_output

_OPERATION = "label_scores"
_SIGNATURE = Signature(
    _OPERATION,
    {
        "h_T": "B C D",
        "h0": "B C D",
        "attention": "B C L?",
        "features": "B L D?",
        "weight_o": "O 2D",
        "bias_o": "O?",
        "weight_c": "C O",
        "bias_c": "C?",
    },
    leader="h_T",
    exact=("attention",),
)


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
    backend: str | None = None,
) -> Tensor:
    """Score each class from its final and its first state (eq. 10).

    ``o = tanh([h_T | h0] @ weight_o.T + bias_o)`` and ``logits[b, c] = o[b, c] · weight_c[c] + bias_c[c]``.

    Args:
        h_T, h0: [B, C, D]; float32, float64, bfloat16 or float16.
        weight_o: [O, 2D] over [h_T, h0].
        bias_o: [O] or None.
        weight_c: [C, O], one classifier per class.
        bias_c: [C] or None.
        attention, features: [B, C, L] and [B, L, D], the factors of h0, given together or not at all; see
            :func:`graph_propagation`.
        backend: a backend's name; None is the fastest that can run these inputs.

    Returns:
        logits [B, C] in h_T's dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device; the message names it.
        BackendUnavailable: the named backend cannot run these inputs.
    """
    check_factors(_OPERATION, attention, features)
    autocast, tensors = _SIGNATURE.check(h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c)
    call = LabelScoresCall(*tensors)
    if attention is not None:  # the gradient of h0 goes to its factors
        call = call._replace(h0=call.h0.detach())
    return run(_OPERATION, call, backend, autocast)[0]


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
    if save and features is not None and low_rank_output(h0, features):
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
