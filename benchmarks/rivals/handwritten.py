"""Rival (c): the identities written by hand in plain PyTorch, eager and under torch.compile.

Shapes: B images, L = H·W locations, C classes, D channels, K joint size, O output size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.harness.cases import Case
from benchmarks.rivals.programs import Program, Rival, Tensors, as_program, joint_inputs, refuses_compile, start_state


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
    """The hand-written form of a case's operation, from the tensors of the case to its outputs."""
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


HANDWRITTEN = (
    Rival("handwritten", "c", "identities by hand, eager", _build_hand, lambda case: None),
    Rival(
        "handwritten-compiled",
        "c",
        "identities by hand, torch.compile",
        _build_hand_compiled,
        refuses_compile,
        compiled=True,
        optional=True,
    ),
)
