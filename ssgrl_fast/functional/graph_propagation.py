"""Gated graph propagation (eq. 7–9): the operation for users, and the shape functions of its operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast.backends.calls import Gates, GraphPropagationCall
from ssgrl_fast.functional.arguments import Signature, check_factors, check_steps
from ssgrl_fast.functional.autograd import run
from ssgrl_fast.functional.fakes import register_fake
from ssgrl_fast.reference.factors import low_rank_pays

RESET_GATES = ("paper", "official")


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


_START = {"h0": "B C D", "adjacency": "C C", "attention": "B C L?", "features": "B L D?"}
_WEIGHTS = {"weight_zr": "2D 3D", "weight_h": "D 3D"}
_BIASES = {"bias_zr": "2D?", "bias_h": "D?"}
_BLOCKS = {f"blocks.{layer}_{gate}": shape for gate in "zrh" for layer, shape in (("w", "D 2D"), ("u", "D D"))}
_BLOCK_BIASES = {f"blocks.b_{gate}": "D?" for gate in "zrh"}


def _signature(operation: str, gates: dict[str, str]) -> Signature:
    return Signature(operation, _START | gates, leader="h0", exact=("attention",), constant=("adjacency",))


_PACKED = _signature("graph_propagation", _WEIGHTS | _BIASES)
_IN_BLOCKS = _signature("graph_propagation_blocks", _BLOCKS | _BLOCK_BIASES)


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
    start, weights, biases = (h0, adjacency, attention, features), (weight_zr, weight_h), (bias_zr, bias_h)
    return _propagate(_PACKED, start, weights, biases, steps, reset_gate, backend)


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
    if not isinstance(blocks, GateBlocks):
        raise TypeError(
            f"graph_propagation_blocks: blocks must be a GateBlocks of nine tensors, got {type(blocks).__name__}"
        )
    w_z, u_z, b_z, w_r, u_r, b_r, w_h, u_h, b_h = blocks
    start, weights, biases = (h0, adjacency, attention, features), (w_z, u_z, w_r, u_r, w_h, u_h), (b_z, b_r, b_h)
    return _propagate(_IN_BLOCKS, start, weights, biases, steps, reset_gate, backend)


def _propagate(
    signature: Signature,
    start: tuple[Tensor | None, ...],  # h0, adjacency, attention, features
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    steps: int,
    reset_gate: str,
    backend: str | None,
) -> Tensor:
    check_steps(signature.operation, steps)
    check_choice(signature.operation, "reset_gate", reset_gate, RESET_GATES)
    check_factors(signature.operation, *start[2:])
    autocast, (h0, adjacency, attention, features, *gates) = signature.check(*start, *weights, *biases)
    if attention is not None:  # the gradient of h0 goes to its factors
        h0 = h0.detach()
    adjacency = adjacency.detach().to(h0.dtype)
    stored = Gates.of(gates[: len(weights)], gates[len(weights) :])
    call = GraphPropagationCall(h0, adjacency, attention, features, stored, steps, reset_gate)
    return run("graph_propagation", call, backend, autocast)[0]


@register_fake("graph_propagation")
def _fake(
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
    images, classes, dim = h0.shape
    h_T = h0.new_empty(images, classes, dim)
    if not save:
        return h_T, h0.new_empty(0), h0.new_empty(0), h0.new_empty(0)
    states = h0.new_empty(steps, images * classes, 4 * dim)
    gates = h0.new_empty(steps, images * classes, 3 * dim)
    if features is None or not low_rank_pays(h0.shape[1], features.shape[1], h0.shape[2]):
        return h_T, states, gates, h0.new_empty(0)
    return h_T, states, gates, h0.new_empty((7 if tied else 8) * images * features.shape[1], dim)


@register_fake("graph_propagation_backward")
def _fake_backward(
    grad: Tensor,
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
    d_weights, d_biases = [w.new_empty(w.shape) for w in weights], [b.new_empty(b.shape) for b in biases]
    if attention is None or features is None:
        return h0.new_empty(h0.shape), h0.new_empty(0), h0.new_empty(0), d_weights, d_biases
    d_features = features.new_empty(features.shape if need_features else (0,))
    return h0.new_empty(0), attention.new_empty(attention.shape), d_features, d_weights, d_biases
