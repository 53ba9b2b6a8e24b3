"""Gated propagation for inference in e4m3: what :meth:`ssgrl_fast.SSGRLHead.quantize` puts in place of the module of
eq. 7–9. B images, C classes, D channels, L locations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from ssgrl_fast import functional
from ssgrl_fast.e4m3 import Fp8Gates
from ssgrl_fast.modules.graph_propagation import GraphPropagation
from ssgrl_fast.quantization import quantize_gates


class Fp8GraphPropagation(nn.Module):
    """A :class:`GraphPropagation` whose gates are quantized for one graph; it has no parameters and infers only.

    Args:
        propagation: the module whose weights are taken; it is left as it is.
        adjacency: [C, C], the graph of every later call.

    Buffers: ``weight_zr`` [2D, 3D] and ``weight_h`` [D, 3D] in e4m3, ``scale_zr`` [2D] and ``scale_h`` [D] in float32,
    ``bias_zr`` and ``bias_h`` in bfloat16 or None; see :class:`ssgrl_fast.e4m3.Fp8Gates`. Its factors ``inward`` and
    ``outward`` travel in the state_dict as extra state.

    Raises:
        TypeError, ValueError: see :func:`ssgrl_fast.quantization.quantize_gates`.
    """

    def __init__(self, propagation: GraphPropagation, adjacency: Tensor) -> None:
        super().__init__()
        own = propagation
        self.dim, self.steps, self.reset_gate, self.backend = own.dim, own.steps, own.reset_gate, own.backend
        gates = quantize_gates(own.weight_zr, own.bias_zr, own.weight_h, own.bias_h, adjacency, own.reset_gate)
        self.inward, self.outward = gates.inward, gates.outward
        for name, tensor in gates._asdict().items():
            if not isinstance(tensor, float):
                self.register_buffer(name, tensor)

    @property
    def gates(self) -> Fp8Gates:
        """What the operation takes."""
        return Fp8Gates(**{name: getattr(self, name) for name in Fp8Gates._fields})

    def forward(
        self, h0: Tensor, adjacency: Tensor, attention: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Run T steps from h0.

        Args:
            h0: [B, C, D] bfloat16 (under autocast float32 and float16 too).
            adjacency: [C, C], the graph that the gates were quantized for.
            attention, features: the factors of h0, which :class:`GraphPropagation` takes; every step in e4m3 reads h0
                itself.

        Returns:
            h_T [B, C, D] bfloat16.

        Raises:
            TypeError, ValueError, BackendUnavailable: see :func:`ssgrl_fast.functional.graph_propagation_fp8`.
        """
        return functional.graph_propagation_fp8(h0, adjacency, self.gates, steps=self.steps, backend=self.backend)

    def get_extra_state(self) -> Tensor:
        """inward and outward: the weights of a state_dict go with these and no others."""
        return torch.tensor([self.inward, self.outward], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """What :meth:`get_extra_state` gave."""
        self.inward, self.outward = state.tolist()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow a move to another device; a conversion to another dtype leaves quantized gates as they are."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        biased = self.bias_zr is not None
        return f"{self.dim}, steps={self.steps}, reset_gate={self.reset_gate!r}, bias={biased}, format='fp8'"
