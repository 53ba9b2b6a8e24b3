"""How the gate weights map onto the columns of X = [h | A·h | Aᵀ·h | r⊙h] and of the gates G = [z | r | n].

A block is one product: ``G[:, out : out + width] += X[:, first : last] @ weight.T``, columns in units of D. Packed
weights give two blocks (identity 3), the published layout six. Where both gates use U^z, as in the published code
(``tied``, D1), U^z h is a block of its own whose result is added to z and r. Forward, backward and weight gradients use
the same lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ssgrl_fast.kernels.products import units

STATE, RESET = 0, 3
"""Columns of X: h, and r⊙h."""
CANDIDATE, SHARED = 2, 3
"""Columns of G: n; and of the gradient of G, if the gates are tied: d_z + d_r."""


@dataclass(frozen=True)
class Block:
    """One product; if ``shared``, its result is added to z and to r."""

    weight: Tensor  # [width·D, (last - first)·D], a view of a stored tensor
    first: int
    last: int
    out: int
    width: int
    shared: bool = False

    @property
    def source(self) -> int:
        """The first column of the gradient of G from which the gradients of this block are computed."""
        return SHARED if self.shared else self.out

    def column(self, m: int) -> Tensor:
        """The part [width·D, D] of the weight that is multiplied with column m of X."""
        dim = self.weight.shape[1] // (self.last - self.first)
        return units(self.weight, dim, m - self.first, m - self.first + 1)


@dataclass(frozen=True)
class Plan:
    """The blocks of z and r (from h, A·h, Aᵀ·h) and of n (from A·h, Aᵀ·h, r⊙h)."""

    gates: tuple[Block, ...]
    candidate: tuple[Block, ...]


def plan(weights: Sequence[Tensor], tied: bool, dim: int) -> Plan:
    """The products of weight_zr and weight_h, or of the blocks w_z, u_z, w_r, u_r, w_h, u_h."""
    if len(weights) == 2:
        zr, h = weights
        candidate = (Block(h, 1, 4, CANDIDATE, 1),)
        if not tied:
            return Plan((Block(zr, 0, 3, 0, 2),), candidate)
        return Plan((Block(zr[:dim, :dim], 0, 1, 0, 1, shared=True), Block(zr[:, dim:], 1, 3, 0, 2)), candidate)
    w_z, u_z, w_r, u_r, w_h, u_h = weights
    own = () if tied else (Block(u_r, 0, 1, 1, 1),)
    gates = (Block(u_z, 0, 1, 0, 1, shared=tied), *own, Block(w_z, 1, 3, 0, 1), Block(w_r, 1, 3, 1, 1))
    return Plan(gates, (Block(w_h, 1, 3, CANDIDATE, 1), Block(u_h, 3, 4, CANDIDATE, 1)))


class Written:
    """Tracks which columns were written, so that the first product overwrites and later ones add."""

    def __init__(self) -> None:
        self._columns: set[int] = set()

    def test_and_set(self, first: int, last: int) -> bool:
        """Whether column ``first`` was written before; marks columns first .. last - 1 as written."""
        before = first in self._columns
        self._columns.update(range(first, last))
        return before
