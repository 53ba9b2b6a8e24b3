"""Semantic attention (eq. 3–6): the operation for users, and the shape functions of its operators."""

from __future__ import annotations

from torch import Tensor

from ssgrl_fast.backends.calls import SemanticAttentionCall
from ssgrl_fast.functional.arguments import Signature
from ssgrl_fast.functional.autograd import run
from ssgrl_fast.functional.fakes import register_fake

_OPERATION = "semantic_attention"
_SIGNATURE = Signature(
    _OPERATION, {"u": "B L K", "v": "C K", "p": "K", "features": "B L D"}, leader="features", exact=("p",)
)


def semantic_attention(
    u: Tensor, v: Tensor, p: Tensor, features: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Attend to the locations that matter to each class and pool the features there (eq. 3–6).

    ``attention[b, c] = softmax_l(Σ_k p[k] · tanh(u[b, l, k] · v[c, k]))`` and ``pooled[b] = attention[b] @
    features[b]``.

    Args:
        u: [B, L, K], the features in the joint space, ``features @ U`` of eq. 3.
        v: [C, K], the class words in the joint space, ``words @ V`` of eq. 3; u's dtype.
        p: [K], P·w_a, which folds eq. 3's P into eq. 4's f_a; float32, or float64 with float64 features.
        features: [B, L, D]; u's dtype: float32, float64, bfloat16 or float16.
        backend: a backend's name; None is the fastest that can run these inputs.

    Returns:
        pooled [B, C, D] in the features' dtype; attention [B, C, L] in p's dtype, each row of which sums to 1.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device; the message names it.
        BackendUnavailable: the named backend cannot run these inputs.
    """
    autocast, tensors = _SIGNATURE.check(u, v, p, features)
    pooled, attention = run(_OPERATION, SemanticAttentionCall(*tensors), backend, autocast)
    return pooled, attention


@register_fake("semantic_attention")
def _fake(u: Tensor, v: Tensor, p: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    (images, locations, dim), classes = features.shape, v.shape[0]
    return features.new_empty(images, classes, dim), p.new_empty(images, classes, locations)


@register_fake("semantic_attention_backward")
def _fake_backward(
    grad_pooled: Tensor | None,
    grad_attention: Tensor | None,
    u: Tensor,
    v: Tensor,
    p: Tensor,
    features: Tensor,
    attention: Tensor,
    need_features: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_features = features.new_empty(features.shape if need_features else (0,))
    return u.new_empty(u.shape), v.new_empty(v.shape), p.new_empty(p.shape), d_features
