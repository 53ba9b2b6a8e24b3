"""The parity check ("gate"): before timing, the outputs and gradients of every rival are compared with the float64
reference.

Each case is checked at a smaller shape of its class (Case.small): the same C, L and choice of identity 4,
fewer channels, at most two images. Errors are relative L2 distances to the float64 reference on the same inputs, pooled
over several seeds. This library's backends are held to the budgets of ssgrl_fast.testing: fixed in float32, 1.2 times
the error of the plain form in the reduced precisions (widened by 8/√n where fewer than 4,096 values are pooled, as that
few scatter). The other rivals may err by a multiple of the plain form's error (Rival.loose): the published form is not
wrong because it rounds more often than the reference, but a form that computes something else lies far beyond that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import cases
from benchmarks.harness.cases import Case
from benchmarks.rivals.programs import Program, Rival, Tensors, as_program, cotangents, joint_inputs
from ssgrl_fast import reference
from ssgrl_fast.testing import budget, relative_error

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Check:
    """One quantity of one rival against the reference; ``error`` is infinite where values are not finite."""

    rival: str
    case: Case
    quantity: str
    error: float
    allowed: float

    @property
    def green(self) -> bool:
        return self.error <= self.allowed

    def __str__(self) -> str:
        found = f"relative L2 error {self.error:.2e}, allowed {self.allowed:.0e}"
        return f"{self.rival}: {self.quantity} of {self.case}: {found}"


class ParityError(RuntimeError):
    """At least one rival does not compute what the reference computes; nothing may be timed."""

    def __init__(self, red: Sequence[Check]) -> None:
        super().__init__(
            "\n".join(["nothing was timed: these rivals differ from the float64 reference", *map(str, red)])
        )
        self.red = tuple(red)


def gate(
    case: Case, rivals: Iterable[Rival], seeds: Sequence[int] = SEEDS, broken: dict[str, Exception] | None = None
) -> list[Check]:
    """:func:`compare`, which may not find an error over its budget.

    Raises:
        ParityError: an error over its budget, with all that are.
    """
    checks = compare(case, rivals, seeds, broken)
    red = [check for check in checks if not check.green]
    if red:
        raise ParityError(red)
    return checks


def compare(
    case: Case,
    rivals: Iterable[Rival],
    seeds: Sequence[int] = SEEDS,
    broken: dict[str, Exception] | None = None,
    alter: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> list[Check]:
    """Check every rival at the small shape of a case: outputs with and without autograd, and each gradient.

    Args:
        broken: takes the error of each rival that raised instead of computing; None lets it through.
        alter: changes the random inputs.
    """
    small = replace(case.small(), mode="train")
    inputs = [alter(cases.tensors(small, seed)) for seed in seeds]
    wide = replace(small, dtype=torch.float64, tf32=False)
    truths = [evaluate(truth(wide, {name: value.double() for name, value in t.items()}), wide) for t in inputs]
    checks = list[Check]()
    with cases.multiplying(small.tf32):
        plain = [evaluate(truth(small, t), small) for t in inputs]
        for rival in rivals:
            try:
                found = [evaluate(rival.build(small, t), small) for t in inputs]
            except Exception as error:
                if broken is None:
                    raise
                broken[rival.name] = error
                continue
            for quantity in truths[0]:
                allowed = _allowed(small, rival, quantity, plain, truths)
                checks.append(Check(rival.name, small, quantity, _pooled(quantity, found, truths), allowed))
    return checks


def _allowed(
    case: Case, rival: Rival, quantity: str, plain: Sequence[dict[str, Tensor]], truths: Sequence[dict[str, Tensor]]
) -> float:
    """The largest error that a rival may have; never infinite, as a plain form that is not finite excuses nothing."""
    limits, gradient = budget(case.operation, case.dtype), quantity.startswith("gradient")
    if case.tf32:
        limits = replace(limits, forward=None, gradient=None)
    error, count = _pooled(quantity, plain, truths), sum(values[quantity].numel() for values in truths)
    if rival.ours:
        return limits.allowed(gradient=gradient, plain=error, values=count)
    fixed = limits.gradient if gradient else limits.forward
    loose = replace(limits, forward=None, gradient=None, factor=rival.loose, floor=fixed or limits.floor)
    return loose.allowed(gradient=gradient, plain=error, values=count)


def truth(case: Case, tensors: Tensors) -> Program:
    """The case's operation by ssgrl_fast.reference in the tensors' dtype, differentiated by autograd."""
    return as_program(_reference(case), tensors)


def evaluate(program: Program, case: Case) -> dict[str, Tensor]:
    """Outputs without autograd ("output 0") and with it ("recorded output 0"), and "gradient <name>" of each leaf."""
    with torch.inference_mode(), program.around():
        values = {f"output {index}": output.clone() for index, output in enumerate(program.forward())}
    with program.around():
        outputs = program.forward()
        found = torch.autograd.grad(outputs, list(program.leaves.values()), cotangents(case))
    values |= {f"recorded output {index}": output.detach() for index, output in enumerate(outputs)}
    gradients = program.collect(dict(zip(program.leaves, found, strict=True)))
    return values | {f"gradient {name}": value for name, value in gradients.items()}


def _reference(case: Case) -> Callable[[Tensors], tuple[Tensor, ...]]:
    steps = case.shape.steps

    def factors(t: Tensors) -> dict[str, Any]:
        return {"attention": t.get("attention"), "features": t.get("features")}

    def head(t: Tensors) -> tuple[Tensor, ...]:
        pooled, _ = reference.semantic_attention(*joint_inputs(t))
        h_T = reference.graph_propagation(
            pooled, t["adjacency"], t["weight_zr"], None, t["weight_h"], None, steps=steps
        )
        return (reference.label_scores(h_T, pooled, t["weight_o"], t["bias_o"], t["weight_c"], t["bias_c"]),)

    def propagation(t: Tensors) -> tuple[Tensor, ...]:
        weights = (t["weight_zr"], None, t["weight_h"], None)
        return (reference.graph_propagation(t["h0"], t["adjacency"], *weights, steps=steps, **factors(t)),)

    def scores(t: Tensors) -> tuple[Tensor, ...]:
        weights = (t["weight_o"], t["bias_o"], t["weight_c"], t["bias_c"])
        return (reference.label_scores(t["h_T"], t["h0"], *weights, **factors(t)),)

    return {
        "head": head,
        "semantic_attention": lambda t: reference.semantic_attention(t["u"], t["v"], t["p"], t["features"]),
        "graph_propagation": propagation,
        "label_scores": scores,
    }[case.operation]


def _pooled(quantity: str, found: Sequence[dict[str, Tensor]], truths: Sequence[dict[str, Tensor]]) -> float:
    """Relative L2 error over the values of all seeds; infinite where a quantity is missing or has another shape."""
    for values, exact in zip(found, truths, strict=True):
        if quantity not in values or values[quantity].shape != exact[quantity].shape:
            return float("inf")
    return relative_error(*(torch.cat([values[quantity].flatten() for values in side]) for side in (found, truths)))
