"""Gated graph propagation (eq. 7–9) with the operands of its products in e4m3, in plain PyTorch; inference alone.

Shapes: B images, C classes, D state channels, T steps. The scales are those of :mod:`ssgrl_fast.reference.e4m3` and
:mod:`ssgrl_fast.modules.fp8`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ssgrl_fast.reference import numerics
from ssgrl_fast.reference.e4m3 import Fp8Gates, state_scale, to_e4m3


def graph_propagation_fp8(h0: Tensor, adjacency: Tensor, gates: Fp8Gates, *, steps: int = 3) -> Tensor:
    """Propagate the class states over the label graph, every product's operands rounded to e4m3.

    What is rounded, and to what: h, A·h, Aᵀ·h and r⊙h to e4m3 before they are multiplied, each after division by its
    scale; z and the new state to h0's dtype. Sums, gates and scales are float32 (float64 with float64 states).

    Args:
        h0: [B, C, D], the states at t = 0 (eq. 7), of any float dtype; an image that is not finite gives NaN.
        adjacency: [C, C], row c holds P(c' | c).
        gates: of :func:`ssgrl_fast.modules.fp8.quantize_gates`, for this graph.
        steps: T of eq. 9.

    Returns:
        h_T [B, C, D] in h0's dtype.
    """
    exact = numerics.exact_dtype(h0.dtype)
    scale = state_scale(h0)
    graph = adjacency.to(exact)
    weight_zr, weight_h = gates.weight_zr.to(exact), gates.weight_h.to(exact)
    scale_zr, scale_h = gates.scale_zr.to(exact), gates.scale_h.to(exact)
    bias_zr, bias_h = (0.0 if bias is None else bias.to(exact) for bias in (gates.bias_zr, gates.bias_h))
    h = h0
    for _ in range(steps):
        state = h.to(exact)
        scaled = state / scale  # first, so that no sum and no product of scales passes the largest float
        inward, outward = graph @ scaled / gates.inward, graph.mT @ scaled / gates.outward  # eq. 8
        messages = [to_e4m3(message).to(exact) for message in (inward, outward)]
        own = to_e4m3(scaled).to(exact)
        zr = linear(torch.cat([own, *messages], dim=-1), weight_zr) * scale_zr * scale + bias_zr
        z, r = torch.sigmoid(zr).chunk(2, dim=-1)  # eq. 9, first and second line
        reset = to_e4m3(r * scaled).to(exact)
        candidate = linear(torch.cat([*messages, reset], dim=-1), weight_h) * scale_h * scale + bias_h
        z = z.to(h.dtype).to(exact)
        h = ((1 - z) * state + z * torch.tanh(candidate)).to(h.dtype)  # eq. 9, third and fourth line
    return h
