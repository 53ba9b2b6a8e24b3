"""The gates, the new state (eq. 9) and their gradients, element by element: what follows the vendor's products.

Shapes: N = B·C nodes, D channels; the columns of X [N, 4D] and of G [N, 3D] are those of graph_propagation.py. A
program takes BLOCK_R rows x BLOCK_D channels, and memory bandwidth limits it. The gradients are functions of a tile of
any kernel, so that a kernel that has just computed the tile's d passes through the gates what else it would store.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ssgrl_fast.kernels.activations import sech_squared, sigmoid_both, tanh, wide


@triton.jit
def _bias(p_bias, o_d, D, HAS_BIAS: tl.constexpr):
    """One row [1, BLOCK_D] of a bias, or zero."""
    return wide(tl.load(p_bias + o_d, mask=o_d < D, other=0))[None, :] if HAS_BIAS else 0.0


@triton.jit
def _tile(N, D, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """A program's rows [BLOCK_R, 1] and channels [BLOCK_D], and which of them there are."""
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    return o_r.to(tl.int64), o_d, (o_r < N) & (o_d < D)[None, :]


@triton.jit
def gate_kernel(
    p_g,  # [N, 3D]: reads D:2D
    p_x,  # [N, 4D]: reads 0:D, writes 3D:4D
    p_bias_r,  # [D], or unused
    N,
    D,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """r⊙h with r = σ(G_r + b_r) (eq. 9, second line)."""
    o_r, o_d, m = _tile(N, D, BLOCK_R, BLOCK_D)
    p_row = p_x + o_r * 4 * D + o_d[None, :]
    b_r = wide(tl.load(p_g + o_r * 3 * D + D + o_d[None, :], mask=m, other=0))
    r, _ = sigmoid_both(b_r + _bias(p_bias_r, o_d, D, HAS_BIAS), p_g.dtype.element_ty, SHORT=True)
    tl.store(p_row + 3 * D, r * wide(tl.load(p_row, mask=m, other=0)), mask=m)


@triton.jit
def blend_kernel(
    p_g,  # [N, 3D]: reads 0:D and 2D:3D
    p_x,  # [N, 4D]: reads 0:D
    p_next,  # [N, stride_next], writes 0:D; may be p_x
    p_bias_z,  # [D], or unused
    p_bias_n,  # [D], or unused
    N,
    D,
    stride_next,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(1 - z)⊙h + z⊙n with z = σ(G_z + b_z), n = tanh(G_n + b_n) (eq. 9, last line)."""
    o_r, o_d, m = _tile(N, D, BLOCK_R, BLOCK_D)
    p_gates = p_g + o_r * 3 * D + o_d[None, :]
    like: tl.constexpr = p_g.dtype.element_ty
    b_z = wide(tl.load(p_gates, mask=m, other=0)) + _bias(p_bias_z, o_d, D, HAS_BIAS)
    z, keep = sigmoid_both(b_z, like, SHORT=True)
    n = tanh(wide(tl.load(p_gates + 2 * D, mask=m, other=0)) + _bias(p_bias_n, o_d, D, HAS_BIAS), like)
    b_h = wide(tl.load(p_x + o_r * 4 * D + o_d[None, :], mask=m, other=0))
    tl.store(p_next + o_r * stride_next + o_d[None, :], keep * b_h + z * n, mask=m)


@triton.jit
def blend_gradients(
    b_d,  # gradient of the new state, wide
    o_r,  # rows [BLOCK_R, 1], int64
    o_d,  # channels [BLOCK_D]
    m,
    p_g,  # [N, 3D]
    p_x,  # [N, 4D]
    p_d_g,  # [N, WIDTH·D]: writes 0:D and 2D:3D
    p_d_x,  # [N, 4D]: writes 0:D
    p_bias_z,
    p_bias_n,
    D,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """From d, the gradient of the new state: d_G_z = d (n - h) z (1 - z), d_G_n = d z sech²(G_n), d_h = d (1 - z)."""
    p_gates, p_d_gates = p_g + o_r * 3 * D + o_d[None, :], p_d_g + o_r * WIDTH * D + o_d[None, :]
    like: tl.constexpr = p_g.dtype.element_ty
    z, keep = sigmoid_both(wide(tl.load(p_gates, mask=m, other=0)) + _bias(p_bias_z, o_d, D, HAS_BIAS), like)
    tl.store(p_d_x + o_r * 4 * D + o_d[None, :], b_d * keep, mask=m)
    b_n = wide(tl.load(p_gates + 2 * D, mask=m, other=0)) + _bias(p_bias_n, o_d, D, HAS_BIAS)
    b_h = wide(tl.load(p_x + o_r * 4 * D + o_d[None, :], mask=m, other=0))
    tl.store(p_d_gates, b_d * (tanh(b_n, like) - b_h) * (z * keep), mask=m)
    tl.store(p_d_gates + 2 * D, b_d * z * sech_squared(b_n, like), mask=m)


@triton.jit
def gate_gradients(
    b_d,  # gradient of r⊙h, wide
    o_r,  # rows [BLOCK_R, 1], int64
    o_d,  # channels [BLOCK_D]
    m,
    p_g,  # [N, 3D]: reads D:2D
    p_x,  # [N, 4D]: reads 0:D
    p_d_g,  # [N, WIDTH·D]: writes D:2D, and where TIED d_z + d_r to 3D:4D
    p_d_x,  # [N, 4D]: adds to 0:D
    p_bias_r,
    D,
    WIDTH: tl.constexpr,
    TIED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """From d, the gradient of r⊙h: d_G_r = d h r (1 - r), d_h += d r."""
    b_r = wide(tl.load(p_g + o_r * 3 * D + D + o_d[None, :], mask=m, other=0))
    r, shut = sigmoid_both(b_r + _bias(p_bias_r, o_d, D, HAS_BIAS), p_g.dtype.element_ty)
    p_d_gates, p_d_h = p_d_g + o_r * WIDTH * D + o_d[None, :], p_d_x + o_r * 4 * D + o_d[None, :]
    b_d_r = b_d * wide(tl.load(p_x + o_r * 4 * D + o_d[None, :], mask=m, other=0)) * (r * shut)
    tl.store(p_d_gates + D, b_d_r, mask=m)
    if TIED:
        tl.store(p_d_gates + 3 * D, wide(tl.load(p_d_gates, mask=m, other=0)) + b_d_r, mask=m)
    tl.store(p_d_h, wide(tl.load(p_d_h, mask=m, other=0)) + b_d * r, mask=m)


@triton.jit
def blend_backward_kernel(
    p_d,  # [N, D], rows stride_d apart; may be columns 0:D of p_d_x
    p_g,
    p_x,
    p_d_g,
    p_d_x,
    p_bias_z,
    p_bias_n,
    N,
    D,
    stride_d,
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """:func:`blend_gradients` of d."""
    o_r, o_d, m = _tile(N, D, BLOCK_R, BLOCK_D)
    b_d = wide(tl.load(p_d + o_r * stride_d + o_d[None, :], mask=m, other=0))
    blend_gradients(b_d, o_r, o_d, m, p_g, p_x, p_d_g, p_d_x, p_bias_z, p_bias_n, D, WIDTH, HAS_BIAS)


@triton.jit
def gate_backward_kernel(
    p_g,
    p_x,
    p_d_g,
    p_d_x,
    p_bias_r,
    N,
    D,
    WIDTH: tl.constexpr,
    TIED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """:func:`gate_gradients` of d in columns 3D:4D of p_d_x."""
    o_r, o_d, m = _tile(N, D, BLOCK_R, BLOCK_D)
    b_d = wide(tl.load(p_d_x + o_r * 4 * D + 3 * D + o_d[None, :], mask=m, other=0))
    gate_gradients(b_d, o_r, o_d, m, p_g, p_x, p_d_g, p_d_x, p_bias_r, D, WIDTH, TIED, HAS_BIAS)
