"""Graph propagation for inference with products in e4m3 (eq. 7–9): the operation for users, and its shape function.

There is no autograd around it, since it has no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssgrl_fast import backends
from ssgrl_fast._utils.pytorch import without_autocast
from ssgrl_fast.backends.calls import Fp8PropagationCall
from ssgrl_fast.functional.arguments import Signature, check_steps
from ssgrl_fast.functional.fakes import register_library_fake
from ssgrl_fast.reference.e4m3 import E4M3, Fp8Gates, check_channels

_OPERATION = "graph_propagation_fp8"
_GATES = {  # shape and dtype of each tensor of the gates
    "weight_zr": ("2D 3D", E4M3),
    "scale_zr": ("2D", torch.float32),
    "bias_zr": ("2D?", torch.bfloat16),
    "weight_h": ("D 3D", E4M3),
    "scale_h": ("D", torch.float32),
    "bias_h": ("D?", torch.bfloat16),
}
_STATES = {"h0": "B C D", "adjacency": "C C"}
_SIGNATURE = Signature(_OPERATION, _STATES, leader="h0", constant=("adjacency",), dtypes=(torch.bfloat16,))
_WITH_GATES = Signature(
    _OPERATION, _STATES | {f"gates.{name}": layout for name, (layout, _) in _GATES.items()}, leader="h0"
)


def graph_propagation_fp8(
    h0: Tensor, adjacency: Tensor, gates: Fp8Gates, *, steps: int = 3, backend: str | None = None
) -> Tensor:
    """:func:`graph_propagation` for inference with the operands of its products in e4m3 (eq. 7–9).

    h, A·h, Aᵀ·h and r⊙h are rounded to e4m3 as they are multiplied, each image's by scales of its own, which hold for
    every finite h0; the state, z and the biases are bfloat16, sums float32. An image whose h0 is not finite gives NaN.
    Where a sum of A·h passes the largest float32, which takes states above 10³⁸ divided by the graph's sums, ``cuda``
    cuts it off at e4m3's largest value or gives NaN.

    Args:
        h0: [B, C, D], the states at t = 0; bfloat16 (under autocast float32 and float16 too); D a multiple of 16.
        adjacency: [C, C], the graph that the gates were quantized for; bfloat16 or float32. With another graph whose
            sums are larger, A·h may be cut off at e4m3's largest value.
        gates: of :func:`ssgrl_fast.modules.fp8.quantize_gates`.
        steps: T, at least 1.
        backend: a backend's name; None is the fastest that can run these inputs.

    Returns:
        h_T [B, C, D] bfloat16, without a gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device, no classes, or h0 that requires a
            gradient where gradients are recorded, or has a forward-mode tangent; the message names it.
        BackendUnavailable: the named backend cannot run these inputs.
    """
    check_steps(_OPERATION, steps)
    if not isinstance(gates, Fp8Gates):
        raise TypeError(f"{_OPERATION}: gates must be Fp8Gates (quantize_gates), got {type(gates).__name__}")
    # shapes, then h0 and adjacency, then the gates
    sizes = _WITH_GATES.sizes(h0, adjacency, *(getattr(gates, name) for name in _GATES))
    check_channels(_OPERATION, sizes["D"])
    if sizes["C"] == 0:
        raise ValueError(f"{_OPERATION}: h0 must have at least one class, got {list(h0.shape)}")
    _, (h0, adjacency) = _SIGNATURE.check(h0, adjacency)
    _check_gates(gates, h0.device)
    # no derivative of any kind
    if torch.is_grad_enabled() and h0.requires_grad:
        raise ValueError(f"{_OPERATION}: h0 requires a gradient, and e4m3 only infers: call it under torch.no_grad()")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(h0).tangent is not None:
        raise ValueError(f"{_OPERATION}: h0 has a tangent, and e4m3 only infers: there is no forward-mode derivative")
    call = Fp8PropagationCall(h0, adjacency.detach().to(h0.dtype), gates, steps)
    name = backends.choose(_OPERATION, h0.device, h0.dtype, backend)
    with without_autocast(h0):
        (h_T,), _ = backends.get(name).operations[_OPERATION].forward(call, False)
    return h_T


def _check_gates(gates: Fp8Gates, device: torch.device) -> None:
    """Check dtype and device of the gates' tensors, and that the messages' scales are positive finite floats."""
    for name, (_, dtype) in _GATES.items():
        tensor = getattr(gates, name)
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(f"{_OPERATION}: gates.{name} must be {dtype}, got {tensor.dtype}")
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{_OPERATION}: gates.{name} is on {tensor.device}, expected {device} as h0")
    for name in ("inward", "outward"):
        factor = getattr(gates, name)
        if not isinstance(factor, float) or not 0 < factor < math.inf:
            raise ValueError(f"{_OPERATION}: gates.{name} must be a positive finite float, got {factor!r}")


@register_library_fake("graph_propagation_fp8")
def _fake(
    h0: Tensor,
    adjacency: Tensor,
    weight_zr: Tensor,
    scale_zr: Tensor,
    bias_zr: Tensor | None,
    weight_h: Tensor,
    scale_h: Tensor,
    bias_h: Tensor | None,
    inward: float,
    outward: float,
    steps: int,
) -> Tensor:
    return h0.new_empty(h0.shape)
