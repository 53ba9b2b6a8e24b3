"""The error budget: how far a result may lie from the float64 truth, for each operation and dtype.

Errors are relative L2 norms. float64 and float32 have fixed budgets; the reduced dtypes are held to 1.2 times the
error that plain PyTorch makes in the same dtype, never below half a unit in the dtype's last place, both pooled over
several seeds. Where the truth (or the plain error) is exactly zero, the rule is absolute. Beside the norm every
single element is bounded: one wrong element in a million hides in a norm.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Budget", "Difference", "assert_close_to_truth", "budget", "parity", "relative_error"]

_OPERATIONS = ("semantic_attention", "graph_propagation", "label_scores", "head")
_FIXED = {torch.float64: (1e-12, 1e-12), torch.float32: (2e-6, 1e-5)}
_HALF_ULP = {torch.float64: 2.0**-54, torch.float32: 2.0**-25, torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
_FACTOR = 1.2  # over the plain form's error, in the reduced dtypes and on float32 gradients
_ELEMENT = 8.0  # budgets of the largest truth that one element may err by; rounding stays below 6 of its own sigma
_POOL = 4096  # fewer elements than this are too noisy for that factor


@dataclass(frozen=True)
class Budget:
    """Limits on the relative L2 error of an operation in one dtype; None where the plain form alone limits it."""

    forward: float | None
    gradient: float | None
    floor: float  # half a unit in the last place of the output's dtype
    factor: float = _FACTOR

    def allowed(self, *, gradient: bool, plain: float, values: int) -> float:
        """The largest relative L2 error of a result, given that of the plain form in the same dtype.

        Args:
            gradient: whether the result is a gradient.
            plain: the plain form's error; one that is not finite excuses nothing.
            values: number of values that both errors are pooled over; few of them scatter.
        """
        fixed, spread = self.gradient if gradient else self.forward, plain if math.isfinite(plain) else 0.0
        if fixed is not None:
            return max(fixed, self.factor * spread) if gradient else fixed
        return max(self.floor, self.factor * (1 + 8 / values**0.5 if values < _POOL else 1.0) * spread)


@dataclass(frozen=True)
class Difference:
    """A quantity of :func:`parity`: its relative L2 error to the float64 truth (infinite where it is not finite), and
    the largest that is allowed."""

    quantity: str
    error: float
    allowed: float

    @property
    def within(self) -> bool:
        """Whether the error is within its budget."""
        return self.error <= self.allowed


def parity(
    module: Callable[..., Any],
    plain: Callable[..., Any],
    inputs: Sequence[Sequence[Tensor]],
    *,
    operation: str = "head",
) -> list[Difference]:
    """Hold a function or module to its equations in plain PyTorch: outputs, and gradients of inputs and parameters.

    The truth is ``plain`` in float64 on the same inputs; where a dtype has no fixed budget, ``plain`` in the dtype says
    what rounding costs (:class:`Budget`).

    Args:
        module: what is checked; takes the tensors of an entry of ``inputs``, gives a tensor or several.
        plain: the same in plain PyTorch, and for modules with parameters of the same names and values.
        inputs: one entry per draw, of the same shapes, in one dtype; errors are pooled over the entries.
        operation: whose budget holds, see :func:`budget`.

    Returns:
        One entry per output and gradient, in their order. ``all(each.within for each in ...)`` is the verdict.

    Raises:
        ValueError: no inputs, a dtype without a budget, or outputs or parameters that are not the same on both sides.
    """
    dtype = next((each.dtype for each in inputs[0] if each.is_floating_point()), None) if inputs else None
    if dtype is None:
        raise ValueError("parity: inputs must hold at least one entry with a floating-point tensor")
    exact = copy.deepcopy(plain).double() if isinstance(plain, torch.nn.Module) else plain
    wide = [[each.double() if each.is_floating_point() else each for each in entry] for entry in inputs]
    found, same = ([_evaluated(form, entry) for entry in inputs] for form in (module, plain))
    truths, limits = [_evaluated(exact, entry) for entry in wide], budget(operation, dtype)
    shapes = [{name: tuple(value.shape) for name, value in side[0].items()} for side in (found, truths)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"parity: the module gives {shapes[0]}, the plain form {shapes[1]}")
    rows = []
    for name in truths[0]:
        truth, *others = (_joined([each[name] for each in side]) for side in (truths, found, same))
        error, spread = (relative_error(other, truth) for other in others)
        gradient = name.startswith("gradient")
        rows.append(Difference(name, error, limits.allowed(gradient=gradient, plain=spread, values=truth.numel())))
    return rows


def _evaluated(form: Callable[..., Any], entry: Sequence[Tensor]) -> dict[str, Tensor]:
    """Outputs, and the gradients of one weighted sum of them."""
    leaves = [each.detach().clone().requires_grad_(each.is_floating_point()) for each in entry]
    given = form(*leaves)
    outputs = [given] if isinstance(given, Tensor) else list(given)
    named = {f"input {index}": leaf for index, leaf in enumerate(leaves) if leaf.requires_grad}
    if isinstance(form, torch.nn.Module):
        named |= {name: value for name, value in form.named_parameters() if value.requires_grad}
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(each.shape, generator=draw, dtype=torch.float64).to(each) for each in outputs]
    gradients = torch.autograd.grad(outputs, list(named.values()), weights, allow_unused=True, materialize_grads=True)
    result = {f"output {index}": each for index, each in enumerate(outputs)}
    return result | {f"gradient of {name}": each for name, each in zip(named, gradients, strict=True)}


def budget(operation: str, dtype: torch.dtype) -> Budget:
    """The error budget of an operation ("semantic_attention", "graph_propagation", "label_scores", "head") in a dtype.

    Raises:
        ValueError: an unknown operation or a dtype without a budget.
    """
    if operation not in _OPERATIONS:
        raise ValueError(f"operation must be one of {', '.join(map(repr, _OPERATIONS))}, got {operation!r}")
    if dtype not in _HALF_ULP:
        raise ValueError(f"dtype must be float64, float32, bfloat16 or float16, got {dtype}")
    forward, gradient = _FIXED.get(dtype, (None, None))
    return Budget(forward, gradient, _HALF_ULP[dtype])


def relative_error(result: Tensor, truth: Tensor) -> float:
    """‖result − truth‖₂ / ‖truth‖₂ in float64; ‖result‖₂ where the truth is exactly zero; inf where not finite."""
    difference, norm = (result.double() - truth.double()).norm().item(), truth.double().norm().item()
    error = difference / norm if norm > 0 else difference
    return error if error == error else float("inf")


def assert_close_to_truth(
    name: str,
    result: Tensor | Sequence[Tensor],
    truth: Tensor | Sequence[Tensor],
    plain: Tensor | Sequence[Tensor] | None = None,
    *,
    operation: str,
    gradient: bool,
    dtype: torch.dtype,
) -> float:
    """Hold a result to its error budget.

    Args:
        name: what is compared, for the message.
        result: the tensor under test, or one a seed.
        truth: the float64 reference on the same inputs, same shapes.
        plain: plain PyTorch in the same dtype, same shapes; needed for the reduced dtypes, and there with 4,096 or more
            elements over all seeds; on float32 gradients it may widen the fixed budget to 1.2 times its own error.
        operation: which operation, see :func:`budget`.
        gradient: whether this is a gradient.
        dtype: the mode in which the operation ran.

    Returns:
        The relative L2 error.

    Raises:
        AssertionError: the error or that of one element is over its budget, a shape differs, or an element is not
            finite where the truth is; the message names the worst index and its values.
        ValueError: the plain form is missing, not finite, or too small for the rule.
    """
    results, truths = _flat(name, result, truth)
    limits = budget(operation, dtype)
    fixed = limits.gradient if gradient else limits.forward
    allowed = limits.floor if fixed is None else fixed
    if plain is not None:
        plains, _ = _flat(f"{name} (plain form)", plain, truth)
        if fixed is None or gradient:
            spread = relative_error(plains, truths)
            if spread == float("inf"):
                raise ValueError(f"{name}: the plain form is not finite, so it can excuse nothing")
            allowed = max(allowed, limits.factor * spread)
    elif fixed is None:
        raise ValueError(f"{name}: in {dtype} the budget is 1.2 times the plain form's error: give plain=")
    if fixed is None and truths.numel() < _POOL and truths.norm() > 0:
        raise ValueError(
            f"{name}: {truths.numel()} elements are too few for the 1.2 rule: pool at least {_POOL} over seeds"
        )
    error = relative_error(results, truths)
    worst = (results - truths).abs().max().item() if truths.numel() else 0.0
    scale = truths.abs().max().item() if truths.numel() else 0.0
    if not (error <= allowed and worst <= _ELEMENT * allowed * (scale or 1.0)):
        raise AssertionError(_failure(name, results, truths, error, allowed, dtype))
    return error


def _flat(name: str, result: Tensor | Sequence[Tensor], truth: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    results = [result] if isinstance(result, Tensor) else list(result)
    truths = [truth] if isinstance(truth, Tensor) else list(truth)
    if len(results) != len(truths) or not truths:
        raise AssertionError(f"{name}: {len(results)} results for {len(truths)} truths")
    for left, right in zip(results, truths, strict=True):
        if left.shape != right.shape:
            raise AssertionError(f"{name}: shape {list(left.shape)}, expected {list(right.shape)}")
    return _joined(results), _joined(truths)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def _failure(name: str, result: Tensor, truth: Tensor, error: float, allowed: float, dtype: torch.dtype) -> str:
    difference = (result - truth).abs()
    difference = torch.where(difference.isnan(), torch.inf, difference)
    at = int(difference.argmax())
    return (
        f"{name} in {dtype}: relative L2 error {error:.3e}, allowed {allowed:.3e}; "
        f"worst at flat index {at} of {result.numel()}: got {result[at].item():.9g}, truth {truth[at].item():.9g}"
    )
