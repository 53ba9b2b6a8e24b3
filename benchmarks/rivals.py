"""The rivals: who computes the same thing, and how. Letters are those of the table in README.md.

A rival builds a :class:`Program` from the tensors of a case (benchmarks.registry.tensors); what building does (packing,
copying weights) is not timed. Shapes: B images, L = H·W locations, C classes, D channels, S word size, K joint size,
M size of f_a's input, O output size.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks import registry
from benchmarks.registry import Case
from ssgrl_fast import functional
from ssgrl_fast.backends import explain
from ssgrl_fast.modules import SSGRLHead
from ssgrl_fast.reference import published

Tensors = Mapping[str, Tensor]
CONSTANTS = ("words", "adjacency")
"""What gets no gradient in a training step."""
CANCELLED = ("bias_p", "bias_a")
"""What the softmax cancels (identity 1): its gradient is exactly zero, and a form with p collapsed does without it."""


@dataclass(frozen=True)
class Program:
    """A rival at one case: ``forward()`` gives the outputs; ``leaves`` get gradients in a training step.

    ``collect`` brings gradients by leaf name to the registry's names and layouts, for the gate.
    """

    forward: Callable[[], tuple[Tensor, ...]]
    leaves: dict[str, Tensor]
    collect: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


@dataclass(frozen=True)
class Rival:
    """``refuses(case)`` is None where it can run, otherwise the reason why not."""

    name: str
    letter: str
    label: str
    build: Callable[[Case, Tensors], Program]
    refuses: Callable[[Case], str | None]
    compiled: bool = False
    optional: bool = False
    ours: bool = False


def step(program: Program, case: Case) -> Callable[[], Sequence[Tensor]]:
    """The timed function: a forward without autograd, or a forward and the gradients of leaves, which it returns."""
    if case.mode == "infer":

        def infer() -> Sequence[Tensor]:
            with torch.inference_mode():
                program.forward()
            return ()

        return infer
    upstream, leaves = cotangents(case), list(program.leaves.values())

    def train() -> Sequence[Tensor]:
        return torch.autograd.grad(program.forward(), leaves, upstream)

    return train


def cotangents(case: Case) -> list[Tensor]:
    """Gradients of the outputs: standard normal, drawn in float32 from a fixed seed, the same for every rival."""
    generator = torch.Generator().manual_seed(7)
    shapes = registry.output_shapes(case)
    return [torch.empty(shape).normal_(generator=generator).to(case.device, case.dtype) for shape in shapes]


def _leaves(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors as leaves of autograd (same storage); constants and, beside its factors, the cached h0 are none."""
    fixed = (*CONSTANTS, *CANCELLED, "h0") if "attention" in tensors else (*CONSTANTS, *CANCELLED)
    return {name: value.detach().requires_grad_(name not in fixed) for name, value in tensors.items()}


def as_program(forward: Callable[[Tensors], tuple[Tensor, ...]], tensors: Tensors) -> Program:
    """A program whose leaves carry the registry's names."""
    given = _leaves(tensors)
    return Program(lambda: forward(given), {name: value for name, value in given.items() if value.requires_grad})


def joint_inputs(t: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u [B, L, K], v [C, K], p [K] and features [B, L, D] of the head's inputs, P and f_a folded (identity 1)."""
    features = t["feature_map"].flatten(2).transpose(1, 2)
    return linear(features, t["weight_u"]), linear(t["words"], t["weight_v"]), t["weight_a"] @ t["weight_p"], features


def _start(t: Tensors) -> Tensor:
    """h0 [B, C, D], from its factors where they are given and gradients have to reach them."""
    return t["attention"] @ t["features"] if "attention" in t else t["h0"]


# (c) the identities by hand


def hand_attention(u: Tensor, v: Tensor, p: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Identities 1 and 2: p collapsed, tanh of a broadcast product, the pool as a product."""
    joint = (u.unsqueeze(1) * v.unsqueeze(1)).tanh_()  # [B, C, L, K]
    attention = torch.softmax(joint @ p, dim=-1)  # [B, C, L]
    return attention @ features, attention


def hand_propagation(h0: Tensor, t: Tensors, steps: int) -> Tensor:
    """Identity 3: one product a step for both gates and one for the candidate, on packed weights."""
    h = h0  # [B, C, D]
    both = torch.cat([t["adjacency"], t["adjacency"].T])  # [2C, C]
    for _ in range(steps):
        inward, outward = (both @ h).chunk(2, dim=1)
        gates = torch.sigmoid(linear(torch.cat([h, inward, outward], dim=-1), t["weight_zr"]))
        z, r = gates.chunk(2, dim=-1)
        candidate = torch.tanh(linear(torch.cat([inward, outward, r * h], dim=-1), t["weight_h"]))
        h = torch.lerp(h, candidate, z)
    return h


def hand_scores(h_T: Tensor, h0: Tensor, t: Tensors) -> Tensor:
    """Eq. 10 with one product for f_o and a row product for the classifiers."""
    output = torch.tanh(linear(torch.cat([h_T, h0], dim=-1), t["weight_o"], t["bias_o"]))  # [B, C, O]
    return (output * t["weight_c"]).sum(-1) + t["bias_c"]


def hand_forward(case: Case) -> Callable[[Tensors], tuple[Tensor, ...]]:
    """The hand-written form of a case's operation, from the registry's tensors to its outputs."""
    steps = case.shape.steps

    def head(t: Tensors) -> tuple[Tensor, ...]:
        pooled, _ = hand_attention(*joint_inputs(t))
        return (hand_scores(hand_propagation(pooled, t, steps), pooled, t),)

    return {
        "head": head,
        "semantic_attention": lambda t: hand_attention(t["u"], t["v"], t["p"], t["features"]),
        "graph_propagation": lambda t: (hand_propagation(_start(t), t, steps),),
        "label_scores": lambda t: (hand_scores(t["h_T"], _start(t), t),),
    }[case.operation]


def _build_hand(case: Case, tensors: Tensors) -> Program:
    return as_program(hand_forward(case), tensors)


def _build_hand_compiled(case: Case, tensors: Tensors) -> Program:
    return as_program(torch.compile(hand_forward(case), fullgraph=True, dynamic=False), tensors)


def _refuses_compile(case: Case) -> str | None:
    if case.device == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "torch.compile needs a C++ compiler, and none of c++, g++, clang++ is on the path"
    return None


# (a) as published


def _build_published(case: Case, tensors: Tensors) -> Program:
    d = case.shape.channels
    weights = {
        name: value for name, value in tensors.items() if name not in ("feature_map", "h0", "attention", "features")
    }
    blocks = _published_blocks(weights, d)
    layers = {name: value.requires_grad_() for name, value in blocks.items()}
    none = {name: None for name in published.PublishedWeights.__dataclass_fields__ if name not in layers}
    packed = published.PublishedWeights(**layers, **none)  # type: ignore[arg-type]
    if case.operation == "head":
        feature_map = tensors["feature_map"].detach().requires_grad_()

        def head() -> tuple[Tensor, ...]:
            features = feature_map.flatten(2).transpose(1, 2).contiguous()
            return published.published_head(
                features, tensors["words"], tensors["adjacency"], packed, steps=case.shape.steps
            )[:1]

        return Program(head, {"feature_map": feature_map, **layers}, _published_gradients)
    given = {name: value for name, value in _leaves(tensors).items() if name in ("h0", "attention", "features")}
    leaves = {name: value for name, value in given.items() if value.requires_grad}

    def propagate() -> tuple[Tensor, ...]:
        return (
            published.published_propagation(_start(given), tensors["adjacency"], packed, case.shape.steps, "paper"),
        )

    return Program(propagate, {**leaves, **layers}, _published_gradients)


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
"""Layer of the published form and the registry's tensor, where they have the same layout."""


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


def _published_gradients(grads: dict[str, Tensor]) -> dict[str, Tensor]:
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


# (d) this library


def _build_ours(backend: str, case: Case, tensors: Tensors) -> Program:
    if case.operation == "head":
        return _build_head(backend, case, tensors)
    given = _leaves(tensors)
    leaves = {name: value for name, value in given.items() if value.requires_grad}
    factors: dict[str, Any] = {
        "attention": given.get("attention"),
        "features": given.get("features"),
        "backend": backend,
    }

    def attention() -> tuple[Tensor, ...]:
        return functional.semantic_attention(given["u"], given["v"], given["p"], given["features"], backend=backend)

    def propagation() -> tuple[Tensor, ...]:
        weights = (given["weight_zr"], None, given["weight_h"], None)
        steps = case.shape.steps
        return (functional.graph_propagation(given["h0"], given["adjacency"], *weights, steps=steps, **factors),)

    def scores() -> tuple[Tensor, ...]:
        weights = (given["weight_o"], given["bias_o"], given["weight_c"], given["bias_c"])
        return (functional.label_scores(given["h_T"], given["h0"], *weights, **factors),)

    forms = {"semantic_attention": attention, "graph_propagation": propagation, "label_scores": scores}
    return Program(forms[case.operation], leaves)


def _build_head(backend: str, case: Case, tensors: Tensors) -> Program:
    """SSGRLHead as a user has it, on the registry's weights (not copied); every parameter gets its gradient."""
    s = case.shape
    head = SSGRLHead(
        s.channels,
        tensors["words"],
        tensors["adjacency"],
        joint_dim=s.joint_dim,
        attention_dim=s.score_dim,
        out_dim=s.out_dim,
        steps=s.steps,
        mode="paper",
        backend=backend,
    )
    own = {name: tensors[name.rpartition(".")[2]].view(value.shape) for name, value in head.state_dict().items()}
    head.load_state_dict(own, assign=True)
    feature_map = tensors["feature_map"].detach().requires_grad_()
    leaves = {name.rpartition(".")[2]: parameter for name, parameter in head.named_parameters()}

    def collect(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.view(tensors[name].shape) for name, value in gradients.items()}

    return Program(lambda: (head(feature_map),), {"feature_map": feature_map, **leaves}, collect)


def _refuses_backend(backend: str, case: Case) -> str | None:
    """The backend's own reason against any of the case's operations."""
    wanted = registry.OPERATIONS[1:] if case.operation == "head" else (case.operation,)
    for row in explain(case.device):
        if row.backend == backend and row.operation in wanted and case.dtype not in row.dtypes:
            return row.reason or f"{backend} does not run {str(case.dtype).removeprefix('torch.')}"
    return None


def _ours(backend: str, letter: str) -> Rival:
    build, refuses = partial(_build_ours, backend), partial(_refuses_backend, backend)
    return Rival(backend, letter, f"ssgrl_fast, {backend}", build, refuses, ours=True)


def _always(case: Case) -> str | None:
    return None


RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        Rival("published", "a", "as published", _build_published, _refuses_published),
        Rival("handwritten", "c", "identities by hand, eager", _build_hand, _always),
        Rival(
            "handwritten-compiled",
            "c",
            "identities by hand, torch.compile",
            _build_hand_compiled,
            _refuses_compile,
            compiled=True,
            optional=True,
        ),
        _ours("reference", "d"),
        _ours("cpu", "d"),
    )
}
"""By name. The products alone (e) are no rival of this kind: they compute no outputs, see benchmarks.products."""
