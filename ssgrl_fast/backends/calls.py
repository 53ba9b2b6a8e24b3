"""What a backend's functions are called with: an operation's checked tensors and options, by name.

Shapes: B images, L locations, C classes, D channels, K joint channels, O output channels, T steps. ``| None`` marks an
argument that may be left out.

``flat()`` lists a call's tensors in the order in which a backward gives their gradients, for autograd takes flat
arguments alone; ``from_flat()`` puts a tensor, or whatever else there is one of for each tensor, back under its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ssgrl_fast.reference.e4m3 import Fp8Gates

Tensors = tuple[Any, ...]  # each a Tensor, or None for one that was left out
Options = tuple[Any, ...]  # constants


class Call(Protocol):
    """One call of an operation; its first tensor has the device and the dtype that choose the backend."""

    @property
    def features(self) -> Any:
        """[B, L, D], which a backward may leave without a gradient."""

    def flat(self) -> tuple[Tensors, Options]:
        """The tensors, and the options that make a call of them again."""

    @classmethod
    def from_flat(cls, tensors: Sequence[Any], options: Options) -> Self:
        """The call with these tensors and options."""


class SemanticAttentionCall(NamedTuple):
    """The tensors of ``semantic_attention``."""

    u: Tensor  # [B, L, K]
    v: Tensor  # [C, K]
    p: Tensor  # [K]
    features: Tensor  # [B, L, D]

    def flat(self) -> tuple[Tensors, Options]:
        return self, ()

    @classmethod
    def from_flat(cls, tensors: Sequence[Any], options: Options) -> Self:
        return cls(*tensors)


class Gates(NamedTuple):
    """The gates' weights as they are stored: packed, or in the six blocks of the published layout; and their biases."""

    weights: tuple[
        Tensor, ...
    ]  # weight_zr [2D, 3D], weight_h [D, 3D]; or w_z, u_z, w_r, u_r, w_h, u_h: [D, 2D], [D, D]
    biases: tuple[Tensor, ...]  # none; or bias_zr [2D], bias_h [D]; or b_z, b_r, b_h: [D]

    @classmethod
    def of(cls, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Self:
        """Gates with all of their biases, a missing one as zeros, or with none where all are missing."""
        present = tuple(bias for bias in biases if bias is not None)
        if present and len(present) < len(biases):
            zeros = cls(tuple(weights), ()).zero_biases()
            present = tuple(zero if bias is None else bias for bias, zero in zip(biases, zeros, strict=True))
        return cls(tuple(weights), present)

    @property
    def is_packed(self) -> bool:
        return len(self.weights) == 2

    def zero_biases(self) -> tuple[Tensor, ...]:
        """Zeros of the biases' shapes."""
        dim = self.weights[-1].shape[0]
        sizes = (2 * dim, dim) if self.is_packed else (dim, dim, dim)
        return tuple(self.weights[0].new_zeros(size) for size in sizes)

    def packed(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """weight_zr [2D, 3D], bias_zr [2D], weight_h [D, 3D] and bias_h [D], by differentiable concatenation."""
        if self.is_packed:
            (weight_zr, weight_h), (bias_zr, bias_h) = self.weights, self.biases or (None, None)
            return weight_zr, bias_zr, weight_h, bias_h
        w_z, u_z, w_r, u_r, w_h, u_h = self.weights
        weight_zr = torch.cat([torch.cat([u_z, w_z], dim=1), torch.cat([u_r, w_r], dim=1)])
        weight_h = torch.cat([w_h, u_h], dim=1)
        if not self.biases:
            return weight_zr, None, weight_h, None
        b_z, b_r, b_h = self.biases
        return weight_zr, torch.cat([b_z, b_r]), weight_h, b_h

    def like(self, weight_zr: Tensor, bias_zr: Tensor, weight_h: Tensor, bias_h: Tensor) -> Gates:
        """Packed values (gradients) in the layout of these gates, as views; without biases where these have none."""
        if self.is_packed:
            return Gates((weight_zr, weight_h), (bias_zr, bias_h) if self.biases else ())
        dim = len(weight_h)
        z, r = weight_zr.split(dim)
        blocks = (z[:, dim:], z[:, :dim], r[:, dim:], r[:, :dim], weight_h[:, : 2 * dim], weight_h[:, 2 * dim :])
        return Gates(blocks, (*bias_zr.split(dim), bias_h) if self.biases else ())


class GraphPropagationCall(NamedTuple):
    """The tensors and options of ``graph_propagation``; with the factors of h0, h0 itself takes no gradient."""

    h0: Tensor  # [B, C, D]
    adjacency: Tensor  # [C, C], a constant in h0's dtype
    attention: Tensor | None  # [B, C, L], with features the factors of h0
    features: Tensor | None  # [B, L, D]
    gates: Gates
    steps: int  # T
    reset_gate: str  # "paper" or "official" (D1)

    def flat(self) -> tuple[Tensors, Options]:
        start = (self.h0, self.adjacency, self.attention, self.features)
        options = (self.steps, self.reset_gate, len(self.gates.weights))
        return (*start, *self.gates.weights, *self.gates.biases), options

    @classmethod
    def from_flat(cls, tensors: Sequence[Any], options: Options) -> Self:
        h0, adjacency, attention, features, *gates = tensors
        steps, reset_gate, weights = options
        return cls(
            h0, adjacency, attention, features, Gates(tuple(gates[:weights]), tuple(gates[weights:])), steps, reset_gate
        )


class Fp8PropagationCall(NamedTuple):
    """The tensors and options of ``graph_propagation_fp8``, which has no backward."""

    h0: Tensor  # [B, C, D] bfloat16
    adjacency: Tensor  # [C, C] bfloat16
    gates: Fp8Gates
    steps: int  # T


class LabelScoresCall(NamedTuple):
    """The tensors of ``label_scores``; with the factors of h0, h0 itself takes no gradient."""

    h_T: Tensor  # [B, C, D]
    h0: Tensor  # [B, C, D]
    attention: Tensor | None  # [B, C, L], with features the factors of h0
    features: Tensor | None  # [B, L, D]
    weight_o: Tensor  # [O, 2D]
    bias_o: Tensor | None  # [O]
    weight_c: Tensor  # [C, O]
    bias_c: Tensor | None  # [C]

    def flat(self) -> tuple[Tensors, Options]:
        return self, ()

    @classmethod
    def from_flat(cls, tensors: Sequence[Any], options: Options) -> Self:
        return cls(*tensors)


CALLS: dict[str, type[Call]] = {
    "semantic_attention": SemanticAttentionCall,
    "graph_propagation": GraphPropagationCall,
    "label_scores": LabelScoresCall,
}
"""The differentiable operations."""
