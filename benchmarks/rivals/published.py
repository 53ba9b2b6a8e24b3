"""Rivals (a) and (b): the literal form of the published code, eager, in float32 and under autocast, and compiled.

Shapes: B images, L = H·W locations, C classes, D channels, K joint size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import cases
from benchmarks.harness.cases import Case
from benchmarks.rivals.programs import Program, Rival, Tensors, leaves_of, refuses_compile, start_state
from ssgrl_fast.reference import published

Forward = Callable[[], tuple[Tensor, ...]]


def build_published(
    case: Case, tensors: Tensors, wrap: Callable[[Forward], Forward] = lambda forward: forward
) -> Program:
    """The form in the tensors' own dtype; ``wrap`` is applied to the forward, to compile it or to set its precision."""
    layers, packed = published_layers(case, tensors)
    if case.operation == "head":
        feature_map = tensors["feature_map"].detach().requires_grad_()

        def head() -> tuple[Tensor, ...]:
            features = feature_map.flatten(2).transpose(1, 2).contiguous()
            return published.published_head(
                features, tensors["words"], tensors["adjacency"], packed, steps=case.shape.steps
            )[:1]

        return Program(wrap(head), {"feature_map": feature_map, **layers}, published_gradients)
    inputs = {name: value for name, value in leaves_of(tensors).items() if name in ("h0", "attention", "features")}
    leaves = {name: value for name, value in inputs.items() if value.requires_grad}

    def propagate() -> tuple[Tensor, ...]:
        h0, steps = start_state(inputs), case.shape.steps
        return (published.published_propagation(h0, tensors["adjacency"], packed, steps, "paper"),)

    return Program(wrap(propagate), {**leaves, **layers}, published_gradients)


def published_layers(case: Case, tensors: Tensors) -> tuple[dict[str, Tensor], published.PublishedWeights]:
    """Copies of the weights as the published code stores them, with gradients: by layer, and as its functions take."""
    inputs = ("feature_map", "h0", "attention", "features")
    weights = {name: value for name, value in tensors.items() if name not in inputs}
    blocks = _published_blocks(weights, case.shape.channels)
    layers = {name: value.requires_grad_() for name, value in blocks.items()}
    none = {name: None for name in published.PublishedWeights.__dataclass_fields__ if name not in layers}
    return layers, published.PublishedWeights(**layers, **none)  # type: ignore[arg-type]


_PUBLISHED = {
    "image": "weight_u",
    "word": "weight_v",
    "joint": "weight_p",
    "joint_bias": "bias_p",
    "score": "weight_a",
    "score_bias": "bias_a",
    "output": "weight_o",
    "output_bias": "bias_o",
    "classifier": "weight_c",
    "classifier_bias": "bias_c",
}
"""Layer of the published form -> tensor of the case, for those with the same layout."""


def _published_blocks(t: Tensors, d: int) -> dict[str, Tensor]:
    """The six gate weights, and the other layers that the operation has, each stored by itself."""
    zr, h = t["weight_zr"], t["weight_h"]
    blocks = {
        "w_z": zr[:d, d:],
        "u_z": zr[:d, :d],
        "w_r": zr[d:, d:],
        "u_r": zr[d:, :d],
        "w_h": h[:, : 2 * d],
        "u_h": h[:, 2 * d :],
    }
    blocks |= {layer: t[name] for layer, name in _PUBLISHED.items() if name in t}
    if "score" in blocks:  # the published f_a is a linear layer with one output
        blocks |= {"score": t["weight_a"].view(1, -1), "score_bias": t["bias_a"].view(1)}
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in blocks.items()}


def published_gradients(grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the six gate weights packed as weight_zr and weight_h; the others renamed and reshaped."""
    zr = [torch.cat([grads["u_z"], grads["w_z"]], 1), torch.cat([grads["u_r"], grads["w_r"]], 1)]
    out = {"weight_zr": torch.cat(zr), "weight_h": torch.cat([grads["w_h"], grads["u_h"]], 1)}
    gates = ("w_z", "u_z", "w_r", "u_r", "w_h", "u_h")
    out |= {_PUBLISHED.get(name, name): grad for name, grad in grads.items() if name not in gates}
    return out | {
        name: out[name].reshape(shape) for name, shape in (("weight_a", (-1,)), ("bias_a", ())) if name in out
    }


def _refuses_published(case: Case) -> str | None:
    if case.operation in ("head", "graph_propagation"):
        return None
    return f"the published code has no {case.operation} apart from its head"


def _compiled(case: Case, tensors: Tensors) -> Program:
    return build_published(case, tensors, partial(torch.compile, fullgraph=True, dynamic=False))


def _in_float32(case: Case, tensors: Tensors) -> Program:
    """On float32 copies, products exact whatever the case's setting."""
    program = build_published(case, {name: value.float() for name, value in tensors.items()})
    return replace(program, around=partial(cases.multiplying, False))


def _autocast(case: Case, tensors: Tensors) -> Program:
    """On float32 copies, the forward under autocast bfloat16, as a user turns it on."""

    def wrap(forward: Forward) -> Forward:
        def call() -> tuple[Tensor, ...]:
            with torch.autocast(case.device, torch.bfloat16):
                return forward()

        return call

    return build_published(case, {name: value.float() for name, value in tensors.items()}, wrap)


def _refuses_autocast(case: Case) -> str | None:
    reason = _refuses_published(case)
    if reason is None and case.precision != "bfloat16":
        reason = f"it is measured beside bfloat16, not {case.precision}"
    return reason


PUBLISHED = (
    Rival("published", "a", "as published", build_published, _refuses_published),
    Rival(
        "published-float32",
        "a",
        "as published, float32",
        _in_float32,
        _refuses_published,
        applies=lambda case: case.precision != "float32",
    ),
    Rival(
        "published-autocast",
        "a",
        "as published, autocast bfloat16",
        _autocast,
        _refuses_autocast,
        applies=lambda case: case.precision == "bfloat16",
    ),
    Rival(
        "published-compiled",
        "b",
        "as published, torch.compile",
        _compiled,
        lambda case: _refuses_published(case) or refuses_compile(case),
        compiled=True,
        optional=True,
    ),
)
