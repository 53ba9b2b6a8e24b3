"""The first step on the L rows of the features (identity 4): with h0 = a·F, every product with M·h0, M in {I, A, Aᵀ},
is (M·a)·(F·Wᵀ). The gradients of a and F are computed directly, without that of h0.

For a block that reads n columns M_1 … M_n of X, P = [F·W_1ᵀ; … ; F·W_nᵀ] is stored as [B, L, n, width·D]. With the
factors as [B, C, L·n] the block is then one product per image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssgrl_fast.kernels.gates import RESET, Block, Plan
from ssgrl_fast.kernels.products import aligned, aligned_like, product


class LowRank:
    """The factors of h0 and the stored products of each block with the features."""

    def __init__(self, attention: Tensor, features: Tensor, adjacency: Tensor) -> None:
        """attention [B, C, L], features [B, L, D], adjacency [C, C] in aligned rows."""
        self.images, self.locations, self.dim = features.shape
        self.features = features.reshape(-1, self.dim)  # [B·L, D]
        self.adjacency = adjacency
        own, graph = aligned(attention, features.dtype), adjacency.expand(self.images, *adjacency.shape)
        inward, outward = aligned_like(own, *own.shape), aligned_like(own, *own.shape)
        product(inward, graph, own)
        product(outward, graph.mT, own)
        self.factors = torch.stack([own, inward, outward], dim=-1)  # [B, C, L, 3]

    def buffer(self, plan: Plan) -> Tensor:
        """An uninitialised buffer [rows, D] for the products of all blocks."""
        sizes = [block.width * len(self.columns(block)) for block in (*plan.gates, *plan.candidate)]
        return self.features.new_empty(sum(sizes) * len(self.features), self.dim)

    def cut(self, plan: Plan, buffer: Tensor) -> dict[int, Tensor]:
        """The buffer's parts [B, L, n, width·D], by the block's id."""
        parts, at = {}, 0
        for block in (*plan.gates, *plan.candidate):
            columns = len(self.columns(block))
            size = block.width * columns * len(self.features)
            shape = (self.images, self.locations, columns, block.width * self.dim)
            parts[id(block)] = buffer[at : at + size].view(shape)
            at += size
        return parts

    @staticmethod
    def columns(block: Block) -> range:
        """The columns of X that are computed from the features for this block: all except r⊙h."""
        return range(block.first, min(block.last, RESET))

    def factor(self, block: Block) -> Tensor:
        """The factors M·a that the block reads, [B, C, L·n], in aligned rows."""
        columns = self.columns(block)
        return aligned(self.factors[..., columns.start : columns.stop].flatten(2))

    def forward(self, block: Block, on_features: Tensor, out: Tensor, add: bool) -> None:
        """out [B, C, width·D] (+)= Σ_m (M_m·a)·(F·W_mᵀ), with F·W_mᵀ stored in on_features [B, L, n, width·D]."""
        for i, m in enumerate(self.columns(block)):
            product(on_features.flatten(0, 1)[:, i], self.features, block.column(m).T)
        if len(self.columns(block)):
            product(out, self.factor(block), on_features.flatten(1, 2), add)

    def backward(
        self,
        block: Block,
        on_features: Tensor,  # [B, L, n, width·D]
        d_out: Tensor,  # [B, C, width·D]
        d_weight: Block,  # like block, its weight the gradient, added to
        d_factors: Tensor,  # [B, C, L, 3] in attention's dtype, added to
        d_features: Tensor | None,  # [B·L, D], added to
    ) -> None:
        """Add the gradients of a block's weight, of the factors and of the features."""
        columns = self.columns(block)
        if not len(columns):
            return
        d_on, factor = torch.empty_like(on_features), self.factor(block)
        product(d_on.flatten(1, 2), factor.transpose(1, 2), d_out)
        part = aligned_like(factor, *factor.shape)  # [B, C, L·n]
        product(part, d_out, on_features.flatten(1, 2).transpose(1, 2))
        d_factors[..., columns.start : columns.stop] += part.unflatten(-1, (self.locations, len(columns)))
        for i, m in enumerate(columns):
            d_rows = d_on.flatten(0, 1)[:, i]
            product(d_weight.column(m), d_rows.T, self.features, add=True)
            if d_features is not None:
                product(d_features, d_rows, block.column(m), add=True)

    def d_attention(self, d_factors: Tensor) -> Tensor:
        """The gradient of a [B, C, L] from the gradients of M·a."""
        own, inward, outward = d_factors.unbind(-1)
        reduced = self.adjacency.dtype
        return own + (self.adjacency.T @ inward.to(reduced)) + (self.adjacency @ outward.to(reduced))


def factor_gradients(
    d_h0: Tensor, attention: Tensor, features: Tensor, d_attention: Tensor, d_features: Tensor | None, add: bool = False
) -> None:
    """d_attention [B, C, L] (+)= d_h0·Fᵀ and d_features [B, L, D] (+)= aᵀ·d_h0, of h0 = a·F."""
    product(d_attention, d_h0, features.transpose(1, 2), add)
    if d_features is not None:
        product(d_features, aligned(attention, features.dtype).transpose(1, 2), d_h0, add)
