"""The operator ``semantic_attention`` (eq. 3–6): its fakes, and its place under autograd."""

from __future__ import annotations

from torch import Tensor

from ssgrl_fast import reference
from ssgrl_fast.backends import Backend
from ssgrl_fast.ops.fakes import register_fake
from ssgrl_fast.ops.operation import Operation, Static, Tensors, register


def _run(backend: Backend, static: Static, tensors: Tensors, save: bool) -> tuple[tuple[Tensor, ...], Tensors]:
    pooled, attention = backend.functions["semantic_attention_forward"](*tensors)
    return (pooled, attention), (attention,) if save else ()


def _run_backward(
    backend: Backend, static: Static, grads: Tensors, tensors: Tensors, saved: Tensors, needs: tuple[bool, ...]
) -> Tensors:
    found: Tensors = backend.functions["semantic_attention_backward"](*grads, *tensors, *saved, needs[3])
    return found


register(
    Operation(
        stem="semantic_attention",
        run=_run,
        run_backward=_run_backward,
        reference=lambda static, tensors: reference.semantic_attention(*tensors),
    )
)


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
