"""Autograd around the operators: one forward and one backward Function for all three operations.

They stand outside the operators, so that compile, export and double backward see plain operators (forward and
backward). The first backward is the backend's kernel. Where autograd is to differentiate it again, it becomes a
Function of its own whose derivative, of any order, is taken from the reference equations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssgrl_fast import backends
from ssgrl_fast._utils.pytorch import is_exporting, without_autocast

Tensors = tuple[Any, ...]  # each a Tensor, or None for one that was left out
Static = tuple[Any, ...]


@dataclass(frozen=True)
class Operation:
    """One stem: how to run it, its backward and its reference on flat tuples of tensors.

    ``run(backend, static, tensors, save) -> outputs, saved``;
    ``run_backward(backend, static, grads, tensors, saved, needs) -> one gradient a tensor``;
    ``reference(static, tensors) -> outputs`` by differentiable PyTorch.
    """

    stem: str
    run: Callable[[backends.Backend, Static, Tensors, bool], tuple[tuple[Tensor, ...], Tensors]]
    run_backward: Callable[..., Tensors]
    reference: Callable[[Static, Tensors], tuple[Tensor, ...]]


_OPERATIONS: dict[str, Operation] = {}


def register(operation: Operation) -> None:
    """Make an operation known to :func:`apply` under its stem."""
    _OPERATIONS[operation.stem] = operation


def apply(stem: str, backend: str | None, static: Static, tensors: Tensors, leader: Tensor) -> tuple[Tensor, ...]:
    """Run an operation on checked tensors; differentiable where one of them requires a gradient.

    Args:
        stem: the operation.
        backend: a backend's name or None.
        static: its arguments that are no tensors.
        tensors: its tensors, None for those left out.
        leader: the tensor whose device and dtype choose the backend.
    """
    operation = _OPERATIONS[stem]
    if _beyond_kernels(tensors):
        wanted = backends.named(backend)
        if wanted is not None and backends.get(wanted).name != "reference":
            reason = "torch.func transforms and forward-mode differentiation run on 'reference' only"
            raise backends.BackendUnavailable(f"{stem}: backend {wanted!r} cannot run here: {reason}")
        return operation.reference(static, tensors)
    name = backends.choose(stem, leader.device.type, leader.dtype, backend)
    graded = torch.is_grad_enabled() and not is_exporting()  # what is exported only infers
    if graded and any(t is not None and t.requires_grad for t in tensors):
        outputs: tuple[Tensor, ...] = _Forward.apply(stem, name, static, *tensors)
        return outputs
    return operation.run(backends.get(name), static, tensors, False)[0]


def _beyond_kernels(tensors: Tensors) -> bool:
    """Whether the equations have to run: under a torch.func transform, or with a forward-mode tangent on a tensor."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stem: str, name: str, static: Static, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        outputs, saved = _OPERATIONS[stem].run(backends.get(name), static, tensors, True)
        ctx.call = (stem, name, static, len(tensors))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *saved)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Tensors:
        stem, name, static, count = ctx.call
        needs = tuple(ctx.needs_input_grad[3:])
        if all(grad is None for grad in grads):
            return (None,) * (3 + len(needs))
        everything = ctx.saved_tensors
        if torch.is_grad_enabled():
            found: Tensors = _Backward.apply(stem, name, static, needs, len(grads), *grads, *everything)
        else:
            tensors, saved = everything[:count], everything[count:]
            found = _gradients(stem, name, static, needs, grads, tensors, saved)
        return (None, None, None, *found)


class _Backward(torch.autograd.Function):
    """The backward as a function that can itself be differentiated, by way of the reference equations."""

    @staticmethod
    def forward(
        ctx: Any, stem: str, name: str, static: Static, needs: tuple[bool, ...], outputs: int, *values: Tensor | None
    ) -> Tensors:
        last = outputs + len(needs)
        grads, tensors, saved = values[:outputs], values[outputs:last], values[last:]
        ctx.call = (stem, static, needs, outputs, len(saved))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads, *tensors)
        return _gradients(stem, name, static, needs, grads, tensors, saved)

    @staticmethod
    def backward(ctx: Any, *seconds: Tensor | None) -> Tensors:
        stem, static, needs, outputs, unused = ctx.call
        again = torch.is_grad_enabled()  # a third order follows: the equations below are its graph
        wanted = ctx.needs_input_grad[5 : 5 + outputs + len(needs)]
        with torch.enable_grad():
            # views: a gradient can depend on a tensor beside it, and that path is not this node's to follow
            values = tuple(None if t is None else t.view_as(t) for t in ctx.saved_tensors)
            grads, tensors = values[:outputs], values[outputs:]
            results = _OPERATIONS[stem].reference(static, tensors)
            reached = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None]
            leaves = [t for t, need in zip(tensors, needs, strict=True) if need]
            first = _pull_back(reached, leaves, create_graph=True)
            asked = [s for s, need in zip(seconds, needs, strict=True) if need]
            pairs = [
                (f, s) for f, s in zip(first, asked, strict=True) if f is not None and f.requires_grad and s is not None
            ]
            given = [t for t, want in zip(values, wanted, strict=True) if want]
            found = iter(_pull_back(pairs, given, create_graph=again))
        gradients: Tensors = (None,) * 5 + tuple(next(found) if want else None for want in wanted) + (None,) * unused
        return gradients


def _gradients(
    stem: str, name: str, static: Static, needs: tuple[bool, ...], grads: Tensors, tensors: Tensors, saved: Tensors
) -> Tensors:
    leader = next(t for t in tensors if t is not None)
    with without_autocast(leader):  # a backward may be called inside a block of it
        found = _OPERATIONS[stem].run_backward(backends.get(name), static, grads, tensors, saved, needs)
    return tuple(gradient if need else None for gradient, need in zip(found, needs, strict=True))


def _pull_back(
    pairs: list[tuple[Tensor, Tensor]], inputs: Sequence[Any], create_graph: bool = False
) -> Sequence[Tensor | None]:
    """Gradients of the inputs from pairs of a result and its gradient; all None where there are no pairs."""
    if not pairs:
        return [None] * len(inputs)
    results, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(results, inputs, grads, create_graph=create_graph, allow_unused=True)
