"""Gated graph propagation, eq. 7–9 of the paper, in plain PyTorch.

Shapes: B images, C classes, D state channels, T steps. The gate weights are packed over X = [h | A·h | Aᵀ·h]:
weight_zr [2D, 3D] = [[U^z, W^z_in, W^z_out], [U^r, W^r_in, W^r_out]], weight_h [D, 3D] = [W_in, W_out, U].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from ssgrl_fast.reference.factors import initial_state
from ssgrl_fast.reference.numerics import sech_squared, sigmoid_pair, sigmoid_slope, tanh


def graph_propagation(
    h0: Tensor,
    adjacency: Tensor,
    weight_zr: Tensor,
    bias_zr: Tensor | None,
    weight_h: Tensor,
    bias_h: Tensor | None,
    *,
    steps: int = 3,
    attention: Tensor | None = None,
    features: Tensor | None = None,
    reset_gate: str = "paper",
) -> Tensor:
    """Propagate the class states over the label graph for a number of gated steps.

    Args:
        h0: [B, C, D], the states at t = 0 (eq. 7).
        adjacency: [C, C], row c holds P(c' | c); a constant.
        weight_zr, bias_zr: [2D, 3D] and [2D] or None, the update and reset gates.
        weight_h, bias_h: [D, 3D] and [D] or None, the candidate.
        steps: T of eq. 9.
        attention, features: [B, C, L] and [B, L, D], the factors of h0; h0 then gets no gradient and they get all of
            it.
        reset_gate: "paper" uses U^r; "official" uses U^z in its place, as the published code does (D1).

    Returns:
        h_T [B, C, D].
    """
    start = initial_state(h0, attention, features)
    constant = adjacency.detach()
    h_T, _, _ = graph_propagation_forward(start, constant, weight_zr, bias_zr, weight_h, bias_h, steps, reset_gate)
    return h_T


def tie_reset_gate(weight_zr: Tensor, reset_gate: str) -> Tensor:
    """weight_zr [2D, 3D] as it is, or with U^z in the place of U^r (D1)."""
    if reset_gate == "paper":
        return weight_zr
    dim = weight_zr.shape[0] // 2
    return torch.cat([weight_zr[:dim], torch.cat([weight_zr[:dim, :dim], weight_zr[dim:, dim:]], dim=1)])


def graph_propagation_forward(
    h0: Tensor,  # [B, C, D]
    adjacency: Tensor,  # [C, C], or [B, C, C] for a graph of its own for each element
    weight_zr: Tensor,  # [2D, 3D]
    bias_zr: Tensor | None,  # [2D]
    weight_h: Tensor,  # [D, 3D]
    bias_h: Tensor | None,  # [D]
    steps: int,
    reset_gate: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """h_T [B, C, D], and for the backward the states [T, B, C, D] and the gates before σ and tanh [T, B, C, 3D]."""
    weight_zr = tie_reset_gate(weight_zr, reset_gate)
    states, gates = [], []
    h = h0  # eq. 7
    for _ in range(steps):
        inward, outward = adjacency @ h, adjacency.mT @ h  # eq. 8
        zr = linear(torch.cat([h, inward, outward], dim=-1), weight_zr, bias_zr)
        (z, keep), (r, _) = map(sigmoid_pair, zr.chunk(2, dim=-1))  # eq. 9, first and second line
        candidate = linear(torch.cat([inward, outward, r * h], dim=-1), weight_h, bias_h)
        states.append(h)
        gates.append(torch.cat([zr, candidate], dim=-1))
        h = keep * h + z * tanh(candidate)  # eq. 9, third and fourth line
    return h, torch.stack(states), torch.stack(gates)


def graph_propagation_backward(
    grad: Tensor,  # [B, C, D], of h_T
    adjacency: Tensor,  # [C, C]
    weight_zr: Tensor,  # [2D, 3D]
    weight_h: Tensor,  # [D, 3D]
    states: Tensor,  # [T, B, C, D]
    gates: Tensor,  # [T, B, C, 3D]
    reset_gate: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h0, weight_zr, bias_zr, weight_h and bias_h, by hand, from the last step to the first."""
    dim = grad.shape[-1]
    weight_zr = tie_reset_gate(weight_zr, reset_gate)
    d_zr_steps, d_candidate_steps, x_steps = [], [], []
    d_h = grad
    for h, gate in zip(states.flip(0), gates.flip(0), strict=True):
        z_in, r_in, n_in = gate.split(dim, dim=-1)
        (z, keep), r, n = sigmoid_pair(z_in), torch.sigmoid(r_in), torch.tanh(n_in)
        inward, outward = adjacency @ h, adjacency.T @ h
        d_candidate = d_h * z * sech_squared(n_in)
        d_inward, d_outward, d_reset = (d_candidate @ weight_h).split(dim, dim=-1)
        d_z = d_h * (n - h) * sigmoid_slope(z_in)
        d_r = d_reset * h * sigmoid_slope(r_in)
        d_zr = torch.cat([d_z, d_r], dim=-1)
        d_state, d_inward_zr, d_outward_zr = (d_zr @ weight_zr).split(dim, dim=-1)
        d_h = d_h * keep + d_reset * r + d_state
        d_h = d_h + adjacency.T @ (d_inward + d_inward_zr) + adjacency @ (d_outward + d_outward_zr)
        d_zr_steps.append(d_zr)
        d_candidate_steps.append(d_candidate)
        x_steps.append(torch.cat([h, inward, outward, r * h], dim=-1))
    d_zr, d_candidate, x = torch.stack(d_zr_steps), torch.stack(d_candidate_steps), torch.stack(x_steps)
    d_weight_zr = torch.einsum("tbcg,tbcx->gx", d_zr, x[..., : 3 * dim])
    d_weight_h = torch.einsum("tbcg,tbcx->gx", d_candidate, x[..., dim:])
    if reset_gate == "official":
        tied = d_weight_zr[:dim, :dim] + d_weight_zr[dim:, :dim]
        state_column = torch.cat([tied, torch.zeros_like(tied)])
        d_weight_zr = torch.cat([state_column, d_weight_zr[:, dim:]], dim=1)
    return d_h, d_weight_zr, d_zr.sum((0, 1, 2)), d_weight_h, d_candidate.sum((0, 1, 2))
