"""Gated graph propagation (eq. 7–9): T steps of aggregation, product, gate, product, blend.

    X = [h | A·h | Aᵀ·h | r⊙h]
    [z | r] = σ(X[:, :3D] @ weight_zrᵀ)    n = tanh(X[:, D:] @ weight_hᵀ)    h ← (1 - z)⊙h + z⊙n

Shapes: B images, C classes, D channels, T steps, N = B·C nodes. The kernels read and write columns of X [N, 4D] and of
the gates before σ and tanh, G [N, 3D]. Nothing is concatenated: each kernel writes where the next product reads. A
product is one kernel with the gates in its epilogue (gated_product.py), or the vendor's (products.py) with an
elementwise kernel behind it (gate_kernels.py).

X and G of every step are saved for the backward, 7·D values per node and step. The backward then recomputes no product,
and each weight gradient is one product over the rows of all steps (identity 6). ``recompute=True`` of
:class:`ssgrl_fast.GraphPropagation` saves only h of each step and computes each step again before its backward, which
takes a third more time in the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ssgrl_fast.kernels.aggregate import aggregate, aggregate_backward, by_kernel
from ssgrl_fast.kernels.gate_kernels import blend_backward_kernel, blend_kernel, gate_backward_kernel, gate_kernel
from ssgrl_fast.kernels.gated_product import BLEND, GATES, GatedProducts
from ssgrl_fast.kernels.gated_product import RESET as RESET_GRADIENT
from ssgrl_fast.kernels.gates import CANDIDATE, RESET, STATE, Block, Plan, Written, plan
from ssgrl_fast.kernels.launch import cdiv, run
from ssgrl_fast.kernels.low_rank import LowRank, factor_gradients
from ssgrl_fast.kernels.products import aligned, product, units
from ssgrl_fast.kernels.tile_tables import tiles
from ssgrl_fast.reference.factors import low_rank_pays


class _Step:
    """The kernels of the steps of one call, with their common arguments."""

    factors: LowRank | None = None
    columns: Sequence[Tensor] = ()  # of X: what the gates and the candidate are products of, h, r⊙h

    def __init__(self, h0: Tensor, adjacency: Tensor, biases: Sequence[Tensor]) -> None:
        self.images, self.classes, self.dim = h0.shape
        self.adjacency = aligned(adjacency)
        bias = [b.contiguous() for b in biases]
        packed = len(bias) == 2
        self.has_bias = bool(bias)
        self.bias_z = (bias[0][: self.dim] if packed else bias[0]) if bias else h0
        self.bias_r = (bias[0][self.dim :] if packed else bias[1]) if bias else h0
        self.bias_n = bias[-1] if bias else h0
        self.rows = tiles("rows", h0)
        self.grid = (cdiv(self.images * self.classes, self.rows["BLOCK_R"]), cdiv(self.dim, self.rows["BLOCK_D"]))

    def each(self, kernel: triton.JITFunction, **arguments: object) -> None:
        """Launch an elementwise kernel over all states."""
        sizes = {"N": self.images * self.classes, "D": self.dim, "HAS_BIAS": self.has_bias}
        run(kernel, self.grid, **arguments, **sizes, **self.rows)

    def fuse(self, blocks: Plan) -> None:
        """Plan the products that have their gates in the epilogue: of packed weights that are not tied."""
        self.products = GatedProducts(self.adjacency, self.images * self.classes)
        one_each = len(blocks.gates) == len(blocks.candidate) == 1
        self.gates_fused = one_each and self.products.plan(GATES, blocks.gates[0].weight) is not None
        self.blend_fused = one_each and self.products.plan(BLEND, blocks.candidate[0].weight) is not None
        self.products.take_room()

    def gates(self, blocks: Plan, x: Tensor, g: Tensor, low: dict[int, Tensor]) -> None:
        """G_z, and r⊙h in the last column of X."""
        if not self.gates_fused or low:
            self.blocks(blocks.gates, x, g, low)
            self.each(gate_kernel, p_g=g, p_x=x, p_bias_r=self.bias_r)
            return
        a, _, h, reset = self.columns
        bias = self.bias_r if self.has_bias else None
        self.products.run(GATES, a, blocks.gates[0].weight, reset, g=g, h=h, bias=bias)

    def blend(self, blocks: Plan, x: Tensor, g: Tensor, low: dict[int, Tensor], out: Tensor) -> None:
        """The new h [N, D]."""
        if not self.blend_fused or low:
            self.blocks(blocks.candidate, x, g, low)
            bias = {"p_bias_z": self.bias_z, "p_bias_n": self.bias_n}
            self.each(blend_kernel, p_g=g, p_x=x, p_next=out, stride_next=out.stride(0), **bias)
            return
        _, a, h, _ = self.columns
        biases = {"bias": self.bias_n, "bias_z": self.bias_z} if self.has_bias else {}
        self.products.run(BLEND, a, blocks.candidate[0].weight, out, place=1, g=g, h=h, **biases)

    def fuse_backward(self, blocks: Plan, steps: int) -> None:
        """Plan the product of d_(r⊙h) with its gradients in the epilogue: of packed weights that are not tied."""
        self.products = GatedProducts(self.adjacency, self.images * self.classes)
        one_each = len(blocks.gates) == len(blocks.candidate) == 1
        self.reset_fused = (
            one_each and self.products.plan(RESET_GRADIENT, blocks.candidate[0].column(RESET)) is not None
        )
        self.products.take_room(steps)

    def candidate_backward(
        self, blocks: Plan, t: int, shared: dict[str, Any], d_x: Tensor, tied: bool, low: bool
    ) -> None:
        """The gradients of A·h, Aᵀ·h and G_r, and of h by way of r⊙h, from that of G_n."""
        d_g = shared["p_d_g"]
        if not self.reset_fused or low:
            _through_blocks(blocks.candidate, d_g, d_x, self.dim, low)
            self.each(gate_backward_kernel, p_d_x=d_x, **shared, p_bias_r=self.bias_r, TIED=tied)
            return
        d_n, block = units(d_g, self.dim, CANDIDATE, CANDIDATE + 1), blocks.candidate[0]
        product(units(d_x, self.dim, 1, RESET), d_n, units(block.weight, self.dim, 0, RESET - block.first))
        tensors = {"rest": d_g, "g": shared["p_g"], "h": shared["p_x"], "bias": self.bias_r if self.has_bias else None}
        self.products.run(RESET_GRADIENT, d_n, block.column(RESET), d_x, place=t, **tensors)

    def blocks(self, blocks: Sequence[Block], x: Tensor, g: Tensor, low: dict[int, Tensor]) -> None:
        """G (+)= X·Wᵀ for each block; ``low`` is empty except in the first step if identity 4 is used."""
        written, by_image = Written(), g.view(self.images, self.classes, 3 * self.dim)
        for block in blocks:
            last = block.out + block.width
            add = written.test_and_set(block.out, last)
            out = units(g, self.dim, block.out, last)
            if not low:
                product(out, units(x, self.dim, block.first, block.last), block.weight.T, add)
            elif self.factors is not None:
                self.factors.forward(block, low[id(block)], units(by_image, self.dim, block.out, last), add)
                if block.last > RESET:
                    reset = units(x, self.dim, RESET, RESET + 1)
                    product(out, reset, block.column(RESET).T, add or block.first < RESET)
            if block.shared:
                units(g, self.dim, 1, 2).copy_(out)
                written.test_and_set(1, 2)


def forward(
    h0: Tensor,
    adjacency: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    steps: int,
    tied: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h_T [B, C, D] and, if ``save``, X [T, N, 4D], G [T, N, 3D] and step 1's low-rank products (else shape [0])."""
    # buffers: all steps if save, else one that every step reuses
    (images, classes, dim), count = h0.shape, h0.shape[0] * h0.shape[1]
    step, blocks = _Step(h0, adjacency, biases), plan(weights, tied, dim)
    step.fuse(blocks)
    kept = steps if save else 1
    states, gates = h0.new_empty(kept, count, 4 * dim), h0.new_empty(kept, count, 3 * dim)
    low, step.factors, buffer = _low_rank(blocks, step.adjacency, attention, features, classes, dim)
    if low:
        units(states[0], dim, STATE, 1).copy_(h0.reshape(count, dim))
        if save:
            units(states[0], dim, 1, 3).zero_()  # A·h and Aᵀ·h are not used in the first step
    h_T = h0.new_empty(images, classes, dim)
    # the steps (eq. 8-9); the last one writes h_T, the others the h of the next X
    for t in range(steps):
        if save or t == 0:
            x, g = states[t], gates[t]
            step.columns = [units(x, dim, *places) for places in ((0, 3), (1, 4), (STATE, 1), (RESET, RESET + 1))]
        low_now = low if t == 0 else {}
        if not low_now:
            start = h0.reshape(count, dim) if t == 0 else None
            aggregate(x, step.adjacency, classes, start, step.products.counts)
        step.gates(blocks, x, g, low_now)
        last = t + 1 == steps
        following = h_T.view(count, dim) if last else units(states[t + 1] if save else x, dim, STATE, 1)
        step.blend(blocks, x, g, low_now, following)
    nothing = h0.new_empty(0)
    return (h_T, states, gates, buffer) if save else (h_T, nothing, nothing.clone(), nothing.clone())


def backward(
    grad: Tensor,  # [B, C, D]
    h0: Tensor,
    adjacency: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    saved: Sequence[Tensor],
    steps: int,
    tied: bool,
    need_features: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Gradients of h0 or of its factors (shape [0] for the others), of the weights and of the biases."""
    images, classes, dim = h0.shape
    states, gates, buffer = saved
    step, blocks = _Step(h0, adjacency, biases), plan(weights, tied, dim)
    low, factors, _ = _low_rank(blocks, step.adjacency, attention, features, classes, dim, buffer)
    d_gates, d_h0 = _through_steps(step, blocks, grad, states, gates, tied, low)
    d_weights = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in weights]
    d_blocks = plan(d_weights, tied, dim)
    if tied:  # U^r is not used, so its gradient is zero
        (d_weights[0][dim:, :dim] if len(weights) == 2 else d_weights[3]).zero_()
    for block, d_block in _pairs(blocks, d_blocks):
        _weight_gradient(block, d_block, states, d_gates, dim, bool(low))
    nothing = h0.new_empty(0)
    d_start = (d_h0, nothing, nothing.clone())
    if attention is not None and features is not None:
        by_image = d_gates[0].view(images, classes, d_gates.shape[2])
        d_start = _factor_gradients(
            blocks, d_blocks, low, factors, by_image, d_start[0], attention, features, need_features
        )
    return *d_start, d_weights, _bias_gradients(d_gates, biases, dim)


def _through_steps(
    step: _Step, blocks: Plan, grad: Tensor, states: Tensor, gates: Tensor, tied: bool, low: dict[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """d_G of all steps [T, N, width·D] and the gradient of h0 [B, C, D], without the products of a low-rank step 1."""
    (steps, count, _), dim, width = gates.shape, step.dim, 4 if tied else 3
    # not over the gates: autograd may read what it saved again (retain_graph)
    d_gates, d_x = gates.new_empty(steps, count, width * dim), gates.new_empty(count, 4 * dim)
    d_h, fused = grad.contiguous().view(count, dim), by_kernel(d_x, step.classes)
    bias = {"p_bias_z": step.bias_z, "p_bias_n": step.bias_n}
    step.fuse_backward(blocks, steps)
    of_steps = zip(gates, states, d_gates, strict=True)
    shared = [{"p_g": g, "p_x": x, "p_d_g": d_g, "WIDTH": width} for g, x, d_g in of_steps]
    for t in reversed(range(steps)):
        low_now = t == 0 and bool(low)
        if t + 1 == steps or not fused:
            step.each(blend_backward_kernel, p_d=d_h, stride_d=d_h.stride(0), p_d_x=d_x, **shared[t], **bias)
        d_h = units(d_x, dim, STATE, 1)
        step.candidate_backward(blocks, t, shared[t], d_x, tied, low_now)
        if not low_now:
            _through_blocks(blocks.gates, d_gates[t], d_x, dim, False)
            if t == 0:
                d_h = gates.new_empty(count, dim)
            before = {**shared[t - 1], **bias, "HAS_BIAS": step.has_bias} if fused and t else None
            aggregate_backward(d_x, step.adjacency, step.classes, d_h, before)
    return d_gates, d_h.contiguous().view(grad.shape)


def _low_rank(
    blocks: Plan,
    adjacency: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    classes: int,
    dim: int,
    buffer: Tensor | None = None,
) -> tuple[dict[int, Tensor], LowRank | None, Tensor]:
    """The parts of the low-rank buffer by block, the factors and the buffer; all empty if identity 4 is not used."""
    if attention is None or features is None or not low_rank_pays(classes, features.shape[1], dim):
        return {}, None, adjacency.new_empty(0)
    factors = LowRank(attention, features, adjacency)
    buffer = factors.buffer(blocks) if buffer is None else buffer
    return factors.cut(blocks, buffer), factors, buffer


def _pairs(blocks: Plan, d_blocks: Plan) -> list[tuple[Block, Block]]:
    own, gradients = (*blocks.gates, *blocks.candidate), (*d_blocks.gates, *d_blocks.candidate)
    return list(zip(own, gradients, strict=True))


def _through_blocks(blocks: Sequence[Block], d_g: Tensor, d_x: Tensor, dim: int, low: bool) -> None:
    """d_X (+)= d_G·W for each block. Column h was written before; a low-rank step needs only r⊙h."""
    written = Written()
    written.test_and_set(STATE, 1)
    if blocks[0].out == 0:  # the gates' blocks add to what the candidate's wrote
        written.test_and_set(1, 3)
    for block in blocks:
        d_out = units(d_g, dim, block.source, block.source + block.width)
        if not low:
            add = written.test_and_set(block.first, block.last)
            product(units(d_x, dim, block.first, block.last), d_out, block.weight, add)
        elif block.last > RESET:
            product(units(d_x, dim, RESET, RESET + 1), d_out, block.column(RESET))


def _weight_gradient(block: Block, d_block: Block, states: Tensor, d_gates: Tensor, dim: int, low: bool) -> None:
    """One product over the rows of all steps, without a low-rank first step, of which only r⊙h is full-rank."""
    skipped = 1 if low else 0
    x, d_g = units(states, dim, block.first, block.last), units(d_gates, dim, block.source, block.source + block.width)
    product(d_block.weight, d_g[skipped:].flatten(0, 1).T, x[skipped:].flatten(0, 1))
    if low and block.last > RESET:
        product(d_block.column(RESET), d_g[0].T, units(states[0], dim, RESET, RESET + 1), add=True)


def _bias_gradients(d_gates: Tensor, biases: Sequence[Tensor], dim: int) -> list[Tensor]:
    if not biases:
        return []
    total = d_gates[..., : 3 * dim].sum((0, 1))
    sizes = [2 * dim, dim] if len(biases) == 2 else [dim] * 3
    return [part.clone() for part in total.split(sizes)]


def _factor_gradients(
    blocks: Plan,
    d_blocks: Plan,
    low: dict[int, Tensor],
    factors: LowRank | None,
    d_g: Tensor,  # [B, C, width·D], of the first step
    d_h0: Tensor,
    attention: Tensor,
    features: Tensor,
    need_features: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of h0 (shape [0]), attention and features, in the order of the operator."""
    images, classes, locations = attention.shape
    d_attention = features.new_empty(images, classes, locations)
    d_features = features.new_empty(features.shape) if need_features else None
    factor_gradients(d_h0, attention, features, d_attention, d_features)
    if factors is not None:
        d_factors = attention.new_zeros(factors.factors.shape)  # in float32: every block adds to it
        d_factors[..., 0] = d_attention
        d_rows = None if d_features is None else d_features.view(-1, features.shape[2])
        for block, d_block in _pairs(blocks, d_blocks):
            d_out = units(d_g, features.shape[2], block.source, block.source + block.width)
            factors.backward(block, low[id(block)], d_out, d_block, d_factors, d_rows)
        d_attention = factors.d_attention(d_factors)
    nothing = features.new_empty(0)
    return nothing, d_attention.to(attention.dtype), nothing.clone() if d_features is None else d_features
