"""Gates in e4m3 and the propagation with them, for inference (:func:`ssgrl_fast.functional.graph_propagation_fp8`).

No calibration is needed, since bounds are known: a step blends h with a tanh, so no element of h or r⊙h exceeds the
larger of 1 and the largest element of an image's h_0, and none of A·h that times A's largest row sum. The scales of A·h
and Aᵀ·h are known with the graph and go into the weights; that of the states is computed from each image's h_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from ssgrl_fast import functional
from ssgrl_fast._utils import checks
from ssgrl_fast.functional.arguments import Signature
from ssgrl_fast.modules.graph_propagation import GraphPropagation
from ssgrl_fast.reference.e4m3 import Fp8Gates, by_row, check_channels
from ssgrl_fast.reference.graph_propagation import tie_reset_gate

__all__ = ["Fp8GraphPropagation", "quantize_gates"]

_LAYOUTS = {"weight_zr": "2D 3D", "bias_zr": "2D?", "weight_h": "D 3D", "bias_h": "D?", "adjacency": "C C"}
_SIGNATURE = Signature("quantize_gates", _LAYOUTS, leader="weight_zr")

_FARTHEST = 100
"""Sums of a graph are at most 2^100, and their bounds at least 2^-100: no scale of a message is then 0 or infinite."""


def quantize_gates(
    weight_zr: Tensor,
    bias_zr: Tensor | None,
    weight_h: Tensor,
    bias_h: Tensor | None,
    adjacency: Tensor,
    reset_gate: str = "paper",
) -> Fp8Gates:
    """The gates of eq. 9 in e4m3, with one scale per row; waits for the device.

    Args:
        weight_zr, weight_h: [2D, 3D] and [D, 3D], as :func:`ssgrl_fast.functional.graph_propagation` takes them; D a
            multiple of 16.
        bias_zr, bias_h: [2D] and [D], each or None; a missing one beside the other is zero.
        adjacency: [C, C]; its row sums and column sums bound A·h and Aᵀ·h, so the gates are of this graph.
        reset_gate: "paper", or "official": U^z in the place of U^r (D1).

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device, D no multiple of 16, no classes, values that are not
            finite (biases: in bfloat16), or a sum of the graph above 2^100.
    """
    op = "quantize_gates"
    tensors = (weight_zr, bias_zr, weight_h, bias_h, adjacency)
    sizes = _SIGNATURE.sizes(*tensors)
    checks.check_choice(op, "reset_gate", reset_gate, ("paper", "official"))
    check_channels(op, sizes["D"])
    for name, tensor in zip(_LAYOUTS, tensors, strict=True):
        if tensor is not None and tensor.device != weight_zr.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, expected {weight_zr.device} as weight_zr")
        if tensor is not None and tensor.is_meta:
            raise ValueError(f"{op}: {name} is on meta, and gates are quantized from values")
    if sizes["C"] == 0:
        raise ValueError(f"{op}: adjacency must have at least one class, got {list(adjacency.shape)}")
    # the factors of the messages go into the weights
    inward, outward = (_sum_bound(op, adjacency.detach(), axis) for axis in (1, 0))
    whole = torch.ones(sizes["D"], device=weight_zr.device)
    tied = tie_reset_gate(weight_zr.detach().float(), reset_gate) * torch.cat([whole, whole * inward, whole * outward])
    candidate = weight_h.detach().float() * torch.cat([whole * inward, whole * outward, whole])
    # biases: both or none
    if bias_zr is not None or bias_h is not None:
        bias_zr = torch.zeros(2 * sizes["D"], device=weight_zr.device) if bias_zr is None else bias_zr.detach()
        bias_h = torch.zeros(sizes["D"], device=weight_zr.device) if bias_h is None else bias_h.detach()
    stored_zr, stored_h = (None if bias is None else bias.to(torch.bfloat16) for bias in (bias_zr, bias_h))
    # everything finite, then rounded
    finite = {"weight_zr": tied, "bias_zr": stored_zr, "weight_h": candidate, "bias_h": stored_h}
    for name, tensor in finite.items():
        if tensor is not None and not torch.isfinite(tensor).all():
            raise ValueError(
                f"{op}: {name} holds values that are not finite, or too large for bfloat16 or beside the graph's sums"
            )
    zr, scale_zr = by_row(tied)
    h, scale_h = by_row(candidate)
    return Fp8Gates(zr, scale_zr, stored_zr, h, scale_h, stored_h, inward, outward)


def _sum_bound(operation: str, graph: Tensor, axis: int) -> float:
    """The least power of two, from 2^-100 on, that no sum along an axis of |A| [C, C] exceeds; 1 for a graph without
    edges."""
    largest = graph.double().abs().sum(axis).amax().item()
    if not math.isfinite(largest):
        raise ValueError(f"{operation}: adjacency holds values that are not finite")
    if largest > 2.0**_FARTHEST:
        raise ValueError(f"{operation}: adjacency's sums must be at most 2^{_FARTHEST}, got {largest:.3g}")
    fraction, exponent = math.frexp(largest)
    return 2.0 ** max(exponent - (fraction == 0.5), -_FARTHEST)


class Fp8GraphPropagation(nn.Module):
    """A :class:`GraphPropagation` whose gates are quantized for one graph; it has no parameters and infers only.

    Args:
        propagation: the module whose weights are taken; it is left as it is.
        adjacency: [C, C], the graph of every later call.

    Buffers: ``weight_zr`` [2D, 3D] and ``weight_h`` [D, 3D] in e4m3, ``scale_zr`` [2D] and ``scale_h`` [D] in float32,
    ``bias_zr`` and ``bias_h`` in bfloat16 or None; see :class:`ssgrl_fast.reference.e4m3.Fp8Gates`. Its factors
    ``inward`` and ``outward`` are kept in the state_dict as extra state.

    Raises:
        TypeError, ValueError: see :func:`ssgrl_fast.modules.fp8.quantize_gates`.
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
