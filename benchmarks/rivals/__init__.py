"""The rivals: who computes the same thing, and how. Letters are those of the table in README.md.

A rival builds a :class:`Program` from the tensors of a case (benchmarks.harness.cases.tensors); what building does
(packing,
copying weights) is not timed. Shapes: B images, L = H·W locations, C classes, D channels, S word size, K joint size,
M size of f_a's input, O output size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.harness import cases
from benchmarks.harness.cases import Case
from benchmarks.rivals.accelerated import build_accelerated, refuses_accelerated
from benchmarks.rivals.programs import (
    CANCELLED,
    CONSTANTS,
    Program,
    Rival,
    Tensors,
    as_program,
    cotangents,
    joint_inputs,
    leaves_of,
    refuses_compile,
    start_state,
    step,
)
from benchmarks.rivals.published import PUBLISHED
from ssgrl_fast import functional
from ssgrl_fast.backends import explain, names
from ssgrl_fast.modules import SSGRLHead

__all__ = ["CANCELLED", "CONSTANTS", "RIVALS", "Program", "Rival", "Tensors", "cotangents", "step"]

# (c) the identities by hand


def hand_attention(u: Tensor, v: Tensor, p: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Identities 1 and 2: p collapsed, tanh of a broadcast product, the pool as a product."""
    joint = (u.unsqueeze(1) * v.unsqueeze(1)).tanh_()  # [B, C, L, K]
    attention = torch.softmax(joint @ p.to(joint.dtype), dim=-1)  # [B, C, L]
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
        "graph_propagation": lambda t: (hand_propagation(start_state(t), t, steps),),
        "label_scores": lambda t: (hand_scores(t["h_T"], start_state(t), t),),
    }[case.operation]


def _build_hand(case: Case, tensors: Tensors) -> Program:
    return as_program(hand_forward(case), tensors)


def _build_hand_compiled(case: Case, tensors: Tensors) -> Program:
    return as_program(torch.compile(hand_forward(case), fullgraph=True, dynamic=False), tensors)


# (d) this library


def _build_ours(backend: str, case: Case, tensors: Tensors) -> Program:
    if case.operation == "head":
        return _build_head(backend, case, tensors)
    given = leaves_of(tensors)
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


def head_module(backend: str | None, case: Case, tensors: Tensors) -> SSGRLHead:
    """SSGRLHead as a user has it, on the registry's weights (not copied)."""
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
    return head


def _build_head(backend: str, case: Case, tensors: Tensors) -> Program:
    """The head on a feature map."""
    head = head_module(backend, case, tensors)
    return _inferring(head, head, tensors)


def _build_captured(case: Case, tensors: Tensors) -> Program:
    """The head whose inference is one CUDA graph (SSGRLHead.capture)."""
    head = head_module(None, case, tensors)
    return _inferring(head, head.capture(tensors["feature_map"]), tensors)


def _build_fp8(backend: str, case: Case, tensors: Tensors) -> Program:
    """The head whose inference multiplies in e4m3 (SSGRLHead.quantize)."""
    head = head_module(backend, case, tensors)
    return _inferring(head, head.quantize("fp8"), tensors)


def _inferring(head: SSGRLHead, form: Callable[[Tensor], Tensor], tensors: Tensors) -> Program:
    """A head with another form for inference; with autograd it runs as it is. Every parameter gets its gradient."""
    feature_map = tensors["feature_map"].detach().requires_grad_()
    leaves = {name.rpartition(".")[2]: parameter for name, parameter in head.named_parameters()}

    def forward() -> tuple[Tensor, ...]:
        return ((form if torch.is_inference_mode_enabled() else head)(feature_map),)

    def collect(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.view(tensors[name].shape) for name, value in gradients.items()}

    return Program(forward, {"feature_map": feature_map, **leaves}, collect)


def _refuses_captured(case: Case) -> str | None:
    if case.device != "cuda":
        return "a CUDA graph is captured on a GPU only"
    return None if case.operation == "head" else "only the whole head can be captured"


def _refuses_fp8(case: Case) -> str | None:
    if case.operation != "head" or case.dtype != torch.bfloat16:
        return "only the whole head in bfloat16 is quantized"
    rows = [row for row in explain(case.device) if row.backend == "cuda"]
    return next((row.reason for row in rows if not row.usable), None)


def _refuses_backend(backend: str, case: Case) -> str | None:
    """The backend's own reason against any of the case's operations."""
    wanted = cases.OPERATIONS[1:] if case.operation == "head" else (case.operation,)
    for row in explain(case.device):
        if row.backend == backend and row.operation in wanted and case.dtype not in row.dtypes:
            return row.reason or f"{backend} does not run {str(case.dtype).removeprefix('torch.')}"
    return None


def _ours(backend: str) -> Rival:
    build, refuses = partial(_build_ours, backend), partial(_refuses_backend, backend)
    return Rival(backend, "d", f"ssgrl_fast, {backend}", build, refuses, ours=True)


def _always(case: Case) -> str | None:
    return None


RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        *PUBLISHED,
        Rival("handwritten", "c", "identities by hand, eager", _build_hand, _always),
        Rival(
            "handwritten-compiled",
            "c",
            "identities by hand, torch.compile",
            _build_hand_compiled,
            refuses_compile,
            compiled=True,
            optional=True,
        ),
        *(_ours(name) for name in reversed(names())),
        Rival(
            "accelerated",
            "d",
            "as published, accelerate()",
            build_accelerated,
            refuses_accelerated,
            applies=lambda case: refuses_accelerated(case) is None,
        ),
        Rival(
            "captured",
            "d",
            "ssgrl_fast, captured head",
            _build_captured,
            _refuses_captured,
            applies=lambda case: _refuses_captured(case) is None and case.mode == "infer",
        ),
        Rival(
            "fp8",
            "d",
            "ssgrl_fast, cuda, quantized",
            partial(_build_fp8, "cuda"),
            _refuses_fp8,
            loose=16.0,  # operands of 4 significant bits beside bfloat16's 8
            applies=lambda case: _refuses_fp8(case) is None and case.mode == "infer",
        ),
    )
}
"""By name; (d) are the backends that the library registers.

The products alone (e) are no rival of this kind: they compute no outputs, see benchmarks.rivals.products.
"""


def fastest(case: Case) -> str:
    """The backend that the library would choose for a case: the first of its list that can run it."""
    return next(name for name in names() if RIVALS[name].refuses(case) is None)
