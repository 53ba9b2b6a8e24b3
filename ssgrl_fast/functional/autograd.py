"""The way from a checked call to a backend: one autograd Function, and its backward, for all operations.

The Functions stand outside the operators, so that compile, export and double backward see plain operators (forward and
backward). The first backward is the backend's kernel. Where autograd is to differentiate it again, it becomes a
Function of its own whose derivative, of any order, is taken from the reference equations.

Autograd takes flat arguments: the tensors of a call (``call.flat()``), behind one tuple of constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssgrl_fast import backends
from ssgrl_fast._utils.pytorch import autocasts, is_exporting
from ssgrl_fast.backends.calls import CALLS, Call, Options, Tensors
from ssgrl_fast.backends.reference import EQUATIONS


def run(stem: str, call: Call, backend: str | None, autocast: bool) -> tuple[Tensor, ...]:
    """Run an operation; differentiable where one of its tensors requires a gradient.

    Args:
        stem: the operation.
        call: its checked tensors and options.
        backend: a backend's name or None.
        autocast: whether autocast is on for the tensors' device, and has to be off while kernels compute.

    Raises:
        ValueError, BackendUnavailable: see :func:`ssgrl_fast.backends.choose`.
    """
    tensors, options = call.flat()
    leader = tensors[0]
    if autocast:
        with torch.autocast(leader.device.type, enabled=False):
            return run(stem, call, backend, False)
    # Under a torch.func transform, or with a forward-mode tangent on a tensor, the equations run.
    dual = forward_ad._current_level >= 0 and _has_tangent(tensors)
    if dual or torch._C._are_functorch_transforms_active():
        name = backends.named(backend)
        if name is not None and backends.get(name).name != "reference":
            reason = "torch.func transforms and forward-mode differentiation run on 'reference' only"
            raise backends.BackendUnavailable(f"{stem}: backend {name!r} cannot run here: {reason}")
        return EQUATIONS[stem](call)
    name = backends.choose(stem, leader.device, leader.dtype, backend)
    graded = torch.is_grad_enabled() and not is_exporting()  # what is exported only infers
    if graded and any(t is not None and t.requires_grad for t in tensors):
        outputs: tuple[Tensor, ...] = _Forward.apply((stem, name, options), *tensors)
        return outputs
    return backends.get(name).operations[stem].forward(call, False)[0]


def _has_tangent(tensors: Tensors) -> bool:
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, constants: tuple[str, str, Options], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        stem, name, options = constants
        call = CALLS[stem].from_flat(tensors, options)
        outputs, saved = backends.get(name).operations[stem].forward(call, True)
        ctx.constants, ctx.count = constants, len(tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *saved)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensors:
        needs = ctx.needs_input_grad[1:]
        if all(grad is None for grad in grads):
            return (None,) * (1 + len(needs))
        kept: Tensors = ctx.saved_tensors
        tensors, saved = kept[: ctx.count], kept[ctx.count :]
        if not torch.is_grad_enabled():
            return (None, *_gradients(ctx.constants, needs, grads, tensors, saved))
        # saved is computed from tensors; the equations follow that way, not autograd
        saved = tuple(tensor.detach() for tensor in saved)
        return (None, *_Backward.apply((*ctx.constants, needs, len(grads)), *grads, *tensors, *saved))


class _Backward(torch.autograd.Function):
    """The backward as a function that can itself be differentiated, by way of the reference equations."""

    @staticmethod
    def forward(ctx: Any, constants: tuple[Any, ...], *values: Tensor | None) -> Tensors:
        *operation, needs, outputs = constants
        inputs = outputs + len(needs)
        grads, tensors, saved = values[:outputs], values[outputs:inputs], values[inputs:]
        ctx.constants = constants
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads, *tensors)
        return _gradients(tuple(operation), needs, grads, tensors, saved)

    @staticmethod
    def backward(ctx: Any, *seconds: Tensor | None) -> Tensors:
        stem, _, options, needs, outputs = ctx.constants
        wanted = ctx.needs_input_grad[1:]
        again = torch.is_grad_enabled()  # a third order follows: the equations below are its graph
        with torch.enable_grad():
            # views: a gradient can depend on a tensor beside it, and that path is not this node's to follow
            values = tuple(None if t is None else t.view_as(t) for t in ctx.saved_tensors)
            grads, tensors = values[:outputs], values[outputs:]
            # the first derivatives once more, by the equations
            results = EQUATIONS[stem](CALLS[stem].from_flat(tensors, options))
            reached = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None]
            leaves = [t for t, need in zip(tensors, needs, strict=True) if need]
            first = _pull_back(reached, leaves, create_graph=True)
            # the second ones, from the gradients of the first
            of_first = [second for second, need in zip(seconds, needs, strict=True) if need]
            pairs = [
                (f, s)
                for f, s in zip(first, of_first, strict=True)
                if f is not None and f.requires_grad and s is not None
            ]
            inputs = [t for t, want in zip(values, wanted, strict=False) if want]  # never one of the saved
            second = iter(_pull_back(pairs, inputs, create_graph=again))
        return (None, *(next(second) if want else None for want in wanted))


def _gradients(
    constants: tuple[str, str, Options], needs: Sequence[bool], grads: Tensors, tensors: Tensors, saved: Tensors
) -> Tensors:
    """One gradient for each tensor that needs one, by the backend's backward."""
    if autocasts(tensors[0]):  # a backward may be called inside a block of it
        with torch.autocast(tensors[0].device.type, enabled=False):
            return _gradients(constants, needs, grads, tensors, saved)
    stem, name, options = constants
    backward = backends.get(name).operations[stem].backward
    assert backward is not None
    by_name = CALLS[stem].from_flat
    gradients = backward(by_name(tensors, options), grads, saved, by_name(needs, options).features)
    return tuple([gradient if need else None for gradient, need in zip(gradients, needs, strict=True)])


def _pull_back(
    pairs: list[tuple[Tensor, Tensor]], inputs: Sequence[Any], create_graph: bool = False
) -> Sequence[Tensor | None]:
    """Gradients of the inputs from pairs of a result and its gradient; all None where there are no pairs."""
    if not pairs:
        return [None] * len(inputs)
    results, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(results, inputs, grads, create_graph=create_graph, allow_unused=True)
