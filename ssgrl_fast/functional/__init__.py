"""The head's three operations for users: they check their arguments, apply autocast's rule and run the chosen backend.

Shapes: B images, L = H·W locations, C classes, D feature channels, K joint channels, O output channels, T steps.

Under ``torch.autocast`` float32, float16 and bfloat16 arguments are cast to autocast's dtype, except p, attention and
the adjacency; with a float64 argument nothing is cast. Under ``torch.func`` transforms and in forward-mode
differentiation the reference equations run.

Repeatability: the same inputs give the same bits again, forward and backward, on one machine, backend, PyTorch and
number of threads. No kernel, of the CPU's or Triton's, adds in an order that depends on timing, so
``torch.use_deterministic_algorithms(True)`` changes nothing here; on a GPU PyTorch then wants CUBLAS_WORKSPACE_CONFIG
set for the products that it computes. The CPU kernels' own sums do not depend on the number of threads either, but the
matrix products between them are PyTorch's, and their float32 and float64 rounding can.

Threads and processes: any number of threads may call one head. A process forked after its parent has computed on
several threads hangs in its first parallel region, in PyTorch's own operators too (GNU OpenMP): call
``torch.set_num_threads(1)`` first in the child, as a DataLoader's workers do, or start it by ``spawn``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssgrl_fast import backends, ops
from ssgrl_fast._utils import checks
from ssgrl_fast._utils.pytorch import autocasts, without_autocast
from ssgrl_fast.functional import arguments
from ssgrl_fast.reference import numerics
from ssgrl_fast.reference.e4m3 import E4M3, Fp8Gates, check_channels

__all__ = [
    "GateBlocks",
    "graph_propagation",
    "graph_propagation_blocks",
    "graph_propagation_fp8",
    "label_scores",
    "semantic_attention",
]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class GateBlocks(NamedTuple):
    """The gates' weights as the published layout stores them: nine tensors.

    A gate's pre-activation is ``message @ w.T + state @ u.T + b`` with message = [A·h | Aᵀ·h].
    """

    w_z: Tensor  # [D, 2D], update gate
    u_z: Tensor  # [D, D]
    b_z: Tensor | None  # [D]
    w_r: Tensor  # [D, 2D], reset gate
    u_r: Tensor  # [D, D]
    b_r: Tensor | None  # [D]
    w_h: Tensor  # [D, 2D], candidate
    u_h: Tensor  # [D, D]
    b_h: Tensor | None  # [D]


def semantic_attention(
    u: Tensor, v: Tensor, p: Tensor, features: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Attend to the locations that matter to each class and pool the features there (eq. 3–6).

    ``attention[b, c] = softmax_l(Σ_k p[k] · tanh(u[b, l, k] · v[c, k]))`` and ``pooled[b] = attention[b] @
    features[b]``.

    Args:
        u: [B, L, K], the features in the joint space, ``features @ U`` of eq. 3.
        v: [C, K], the class words in the joint space, ``words @ V`` of eq. 3; u's dtype.
        p: [K], P·w_a, which folds eq. 3's P into eq. 4's f_a; float32, or float64 with float64 features.
        features: [B, L, D]; u's dtype: float32, float64, bfloat16 or float16.
        backend: a backend's name; None is the fastest that can run these inputs.

    Returns:
        pooled [B, C, D] in the features' dtype; attention [B, C, L] in p's dtype, each row of which sums to 1.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device; the message names it.
        BackendUnavailable: the named backend cannot run these inputs.
    """
    op = "semantic_attention"
    arguments.check_tensors(op, {"u": (u, "B L K"), "v": (v, "C K"), "p": (p, "K"), "features": (features, "B L D")})
    arguments.check_locations(op, features)
    u, v, features = _autocast(u, v, features)
    _check_dtype(op, "features", features)
    arguments.check_together(op, "features", {"features": features, "u": u, "v": v})
    arguments.check_exact(op, "p", p, "features", features)
    with without_autocast(features):
        pooled, attention = ops.apply(op, backend, (), (u, v, p, features), features)
    return pooled, attention


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
    backend: str | None = None,
) -> Tensor:
    """Propagate the class states over the label graph for a number of gated steps (eq. 7–9).

    With X = [h | A·h | Aᵀ·h]: ``z, r = σ(X @ weight_zr.T + bias_zr)``,
    ``n = tanh([A·h | Aᵀ·h | r⊙h] @ weight_h.T + bias_h)``, ``h ← (1 − z)⊙h + z⊙n``.

    Args:
        h0: [B, C, D], the states at t = 0; float32, float64, bfloat16 or float16.
        adjacency: [C, C], row c holds P(c' | c); a constant that gets no gradient; h0's dtype or float32 (float64).
        weight_zr: [2D, 3D] = [[U^z, W^z_in, W^z_out], [U^r, W^r_in, W^r_out]]; W_in meets A·h, W_out meets Aᵀ·h.
        bias_zr: [2D] or None.
        weight_h: [D, 3D] = [W_in, W_out, U].
        bias_h: [D] or None.
        steps: T, at least 1.
        attention, features: [B, C, L] and [B, L, D], the factors of h0, given together or not at all. h0 is then only
            their cached product: it gets no gradient, they get all of it, and the first step may run on the L rows.
            attention is float32, or float64 with float64 features.
        reset_gate: "paper" computes r from U^r; "official" from U^z, as the published code does (D1): the U^r block is
            then unused and its gradient is zero.
        backend: a backend's name; None is the fastest that can run these inputs.

    Returns:
        h_T [B, C, D] in h0's dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device; the message names it.
        BackendUnavailable: the named backend cannot run these inputs.
    """
    op = "graph_propagation"
    layouts = {
        "weight_zr": (weight_zr, "2D 3D"),
        "bias_zr": (bias_zr, "2D?"),
        "weight_h": (weight_h, "D 3D"),
        "bias_h": (bias_h, "D?"),
    }
    weights, biases = [weight_zr, weight_h], [bias_zr, bias_h]
    return _propagate(op, layouts, weights, biases, h0, adjacency, attention, features, steps, reset_gate, backend)


def graph_propagation_blocks(
    h0: Tensor,
    adjacency: Tensor,
    blocks: GateBlocks,
    *,
    steps: int = 3,
    attention: Tensor | None = None,
    features: Tensor | None = None,
    reset_gate: str = "paper",
    backend: str | None = None,
) -> Tensor:
    """:func:`graph_propagation` on the gates' weights as the published layout stores them, without packing them.

    Args:
        blocks: nine tensors, see :class:`GateBlocks`; each gets its own gradient (with reset_gate="official" u_r's is
            zero).
        h0, adjacency, steps, attention, features, reset_gate, backend: as for :func:`graph_propagation`.

    Returns:
        h_T [B, C, D] in h0's dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device; the message names it.
        BackendUnavailable: the named backend cannot run these inputs.
    """
    op = "graph_propagation_blocks"
    if not isinstance(blocks, GateBlocks):
        raise TypeError(f"{op}: blocks must be a GateBlocks of nine tensors, got {type(blocks).__name__}")
    shapes = {"w": "D 2D", "u": "D D", "b": "D?"}
    layouts = {f"blocks.{name}": (tensor, shapes[name[0]]) for name, tensor in blocks._asdict().items()}
    weights = [blocks.w_z, blocks.u_z, blocks.w_r, blocks.u_r, blocks.w_h, blocks.u_h]
    biases = [blocks.b_z, blocks.b_r, blocks.b_h]
    return _propagate(op, layouts, weights, biases, h0, adjacency, attention, features, steps, reset_gate, backend)


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
    op = "graph_propagation_fp8"
    arguments.check_steps(op, steps)
    if not isinstance(gates, Fp8Gates):
        raise TypeError(f"{op}: gates must be Fp8Gates (quantize_gates), got {type(gates).__name__}")
    layouts = {
        "gates.weight_zr": (gates.weight_zr, "2D 3D"),
        "gates.scale_zr": (gates.scale_zr, "2D"),
        "gates.bias_zr": (gates.bias_zr, "2D?"),
        "gates.weight_h": (gates.weight_h, "D 3D"),
        "gates.scale_h": (gates.scale_h, "D"),
        "gates.bias_h": (gates.bias_h, "D?"),
    }
    sizes = arguments.check_tensors(op, {"h0": (h0, "B C D"), "adjacency": (adjacency, "C C"), **layouts})
    check_channels(op, sizes["D"])
    if sizes["C"] == 0:
        raise ValueError(f"{op}: h0 must have at least one class, got {list(h0.shape)}")
    (h0,) = _autocast(h0)
    if h0.dtype != torch.bfloat16:
        raise TypeError(f"{op}: h0 must be bfloat16, got {h0.dtype}")
    for (name, (tensor, _)), dtype in zip(layouts.items(), 2 * (E4M3, torch.float32, torch.bfloat16), strict=True):
        if tensor is not None and tensor.dtype != dtype:
            raise TypeError(f"{op}: {name} must be {dtype}, got {tensor.dtype}")
        if tensor is not None and tensor.device != h0.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, expected {h0.device} as h0")
    for name in ("inward", "outward"):
        factor = getattr(gates, name)
        if not isinstance(factor, float) or not 0 < factor < math.inf:
            raise ValueError(f"{op}: gates.{name} must be a positive finite float, got {factor!r}")
    if torch.is_grad_enabled() and h0.requires_grad:
        raise ValueError(f"{op}: h0 requires a gradient, and e4m3 only infers: call it under torch.no_grad()")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(h0).tangent is not None:
        raise ValueError(f"{op}: h0 has a tangent, and e4m3 only infers: there is no forward-mode derivative")
    adjacency = _constant(op, adjacency, h0)
    name = backends.choose(op, h0.device.type, h0.dtype, backend)
    with without_autocast(h0):
        h_T: Tensor = backends.get(name).functions[f"{op}_forward"](h0, adjacency, gates, steps)
    return h_T


def label_scores(
    h_T: Tensor,
    h0: Tensor,
    weight_o: Tensor,
    bias_o: Tensor | None,
    weight_c: Tensor,
    bias_c: Tensor | None,
    *,
    attention: Tensor | None = None,
    features: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Score each class from its final and its first state (eq. 10).

    ``o = tanh([h_T | h0] @ weight_o.T + bias_o)`` and ``logits[b, c] = o[b, c] · weight_c[c] + bias_c[c]``.

    Args:
        h_T, h0: [B, C, D]; float32, float64, bfloat16 or float16.
        weight_o: [O, 2D] over [h_T, h0].
        bias_o: [O] or None.
        weight_c: [C, O], one classifier a class.
        bias_c: [C] or None.
        attention, features: [B, C, L] and [B, L, D], the factors of h0, given together or not at all; see
            :func:`graph_propagation`.
        backend: a backend's name; None is the fastest that can run these inputs.

    Returns:
        logits [B, C] in h_T's dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or device; the message names it.
        BackendUnavailable: the named backend cannot run these inputs.
    """
    op = "label_scores"
    arguments.check_factors(op, attention, features)
    arguments.check_tensors(
        op,
        {
            "h_T": (h_T, "B C D"),
            "h0": (h0, "B C D"),
            "weight_o": (weight_o, "O 2D"),
            "bias_o": (bias_o, "O?"),
            "weight_c": (weight_c, "C O"),
            "bias_c": (bias_c, "C?"),
            "attention": (attention, "B C L?"),
            "features": (features, "B L D?"),
        },
    )
    arguments.check_locations(op, features)
    cast = _autocast(h_T, h0, features, weight_o, bias_o, weight_c, bias_c)
    h_T, h0, features, weight_o, bias_o, weight_c, bias_c = cast
    _check_dtype(op, "h_T", h_T)
    names = ("h_T", "h0", "features", "weight_o", "bias_o", "weight_c", "bias_c")
    arguments.check_together(op, "h_T", dict(zip(names, cast, strict=True)))
    arguments.check_exact(op, "attention", attention, "h_T", h_T)
    if attention is not None:
        h0 = h0.detach()
    with without_autocast(h_T):
        return ops.apply(op, backend, (), (h_T, h0, attention, features, *cast[3:]), h_T)[0]


def _propagate(
    op: str,
    layouts: dict[str, tuple[Tensor | None, str]],
    weights: list[Tensor],
    biases: list[Tensor | None],
    h0: Tensor,
    adjacency: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    steps: int,
    reset_gate: str,
    backend: str | None,
) -> Tensor:
    arguments.check_steps(op, steps)
    checks.check_choice(op, "reset_gate", reset_gate, ("paper", "official"))
    arguments.check_factors(op, attention, features)
    start = {"h0": (h0, "B C D"), "adjacency": (adjacency, "C C")}
    factors = {"attention": (attention, "B C L?"), "features": (features, "B L D?")}
    arguments.check_tensors(op, start | layouts | factors)
    arguments.check_locations(op, features)
    names = [name for name in layouts if not _is_bias(name)] + [name for name in layouts if _is_bias(name)]
    h0, features, *cast = _autocast(h0, features, *weights, *biases)
    _check_dtype(op, "h0", h0)
    arguments.check_together(op, "h0", {"h0": h0, "features": features, **dict(zip(names, cast, strict=True))})
    arguments.check_exact(op, "attention", attention, "h0", h0)
    adjacency = _constant(op, adjacency, h0)
    given = [bias for bias in cast[len(weights) :] if bias is not None]
    if given and len(given) < len(biases):
        rows = [w.shape[0] for w in weights[:: len(weights) // len(biases)]]
        pairs = zip(cast[len(weights) :], rows, strict=True)
        given = [h0.new_zeros(size) if bias is None else bias for bias, size in pairs]
    if attention is not None:
        h0 = h0.detach()
    tensors = (h0, adjacency, attention, features, *cast[: len(weights)], *given)
    with without_autocast(h0):
        return ops.apply("graph_propagation", backend, (steps, reset_gate, len(weights)), tensors, h0)[0]


def _is_bias(name: str) -> bool:
    return name.removeprefix("blocks.").startswith("b")


def _constant(op: str, adjacency: Tensor, h0: Tensor) -> Tensor:
    if adjacency.device != h0.device:
        raise ValueError(f"{op}: adjacency is on {adjacency.device}, expected {h0.device} as h0")
    if adjacency.dtype not in (h0.dtype, numerics.exact_dtype(h0.dtype)):
        expected = f"{h0.dtype} or {numerics.exact_dtype(h0.dtype)}"
        raise TypeError(f"{op}: adjacency is {adjacency.dtype}, expected {expected} beside h0 in {h0.dtype}")
    return adjacency.detach().to(h0.dtype)


def _check_dtype(op: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{op}: {name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")


def _autocast(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors in autocast's dtype where autocast is on for their device and none of them is float64."""
    first = next(tensor for tensor in tensors if tensor is not None)
    if not autocasts(first):
        return tensors
    if any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
