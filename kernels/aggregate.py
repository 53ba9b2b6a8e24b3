"""Aggregation over the label graph (eq. 8) and its gradient: both directions in one pass over the states.

    inward = A·h        outward = Aᵀ·h        d_h += Aᵀ·d_inward + A·d_outward

Shapes: B images, C classes, D channels. A program computes BLOCK_C classes x BLOCK_D channels of one image and loops
over the classes in steps of BLOCK_K. Each tile of h (or of the gradients) is loaded once for both directions; the
adjacency is read in tiles, once per slice of channels. It is treated as dense, for any C.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ssgrl_fast.kernels.activations import wide, wide_zeros
from ssgrl_fast.kernels.launch import dot_precision, run
from ssgrl_fast.kernels.tile_tables import tiles


@triton.jit
def aggregate_kernel(
    p_x,  # [B·C, 4D]: reads columns 0:D, writes D:3D
    p_adjacency,  # [C, C], rows stride_a apart
    C,
    D,
    stride_a,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A·h and Aᵀ·h of each image in one pass over h (eq. 8)."""
    n_d = tl.cdiv(D, BLOCK_D)
    i_b, i_d = tl.program_id(0) // n_d, tl.program_id(0) % n_d
    o_c, o_d = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_c, m_d = o_c < C, o_d < D
    p_image = p_x + i_b.to(tl.int64) * C * 4 * D + o_d[None, :]
    b_in = wide_zeros(p_x.dtype.element_ty, [BLOCK_C, BLOCK_D])
    b_out = wide_zeros(p_x.dtype.element_ty, [BLOCK_C, BLOCK_D])
    for i_n in range(0, C, BLOCK_K):
        o_n = i_n + tl.arange(0, BLOCK_K)
        m_n = o_n < C
        b_h = tl.load(p_image + o_n[:, None].to(tl.int64) * 4 * D, mask=m_n[:, None] & m_d[None, :], other=0)
        b_a = tl.load(
            p_adjacency + o_c[:, None].to(tl.int64) * stride_a + o_n[None, :], mask=m_c[:, None] & m_n[None, :], other=0
        )
        b_in = tl.dot(b_a, b_h, b_in, input_precision=PRECISION, out_dtype=b_in.dtype)
        b_a = tl.load(
            p_adjacency + o_n[None, :].to(tl.int64) * stride_a + o_c[:, None], mask=m_c[:, None] & m_n[None, :], other=0
        )
        b_out = tl.dot(b_a, b_h, b_out, input_precision=PRECISION, out_dtype=b_out.dtype)
    p_rows = p_image + o_c[:, None].to(tl.int64) * 4 * D
    tl.store(p_rows + D, b_in, mask=m_c[:, None] & m_d[None, :])
    tl.store(p_rows + 2 * D, b_out, mask=m_c[:, None] & m_d[None, :])


@triton.jit
def aggregate_backward_kernel(
    p_d_x,  # [B·C, 4D]: adds to columns 0:D, reads D:3D
    p_adjacency,  # [C, C], rows stride_a apart
    C,
    D,
    stride_a,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """d_h += Aᵀ·d_(A·h) + A·d_(Aᵀ·h), with one accumulator for both sums."""
    n_d = tl.cdiv(D, BLOCK_D)
    i_b, i_d = tl.program_id(0) // n_d, tl.program_id(0) % n_d
    o_c, o_d = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_c, m_d = o_c < C, o_d < D
    p_image = p_d_x + i_b.to(tl.int64) * C * 4 * D + o_d[None, :]
    p_rows = p_image + o_c[:, None].to(tl.int64) * 4 * D
    b_d_h = wide(tl.load(p_rows, mask=m_c[:, None] & m_d[None, :], other=0))
    for i_n in range(0, C, BLOCK_K):
        o_n = i_n + tl.arange(0, BLOCK_K)
        m_n = o_n < C
        m, m_a = m_n[:, None] & m_d[None, :], m_c[:, None] & m_n[None, :]
        b_g = tl.load(p_image + o_n[:, None].to(tl.int64) * 4 * D + D, mask=m, other=0)
        b_a = tl.load(p_adjacency + o_n[None, :].to(tl.int64) * stride_a + o_c[:, None], mask=m_a, other=0)
        b_d_h = tl.dot(b_a, b_g, b_d_h, input_precision=PRECISION, out_dtype=b_d_h.dtype)
        b_g = tl.load(p_image + o_n[:, None].to(tl.int64) * 4 * D + 2 * D, mask=m, other=0)
        b_a = tl.load(p_adjacency + o_c[:, None].to(tl.int64) * stride_a + o_n[None, :], mask=m_a, other=0)
        b_d_h = tl.dot(b_a, b_g, b_d_h, input_precision=PRECISION, out_dtype=b_d_h.dtype)
    tl.store(p_rows, b_d_h, mask=m_c[:, None] & m_d[None, :])


def aligned(adjacency: Tensor) -> Tensor:
    """The adjacency [C, C] with rows that begin at multiples of 16 elements, so that vector loads work for any C."""
    classes = len(adjacency)
    if classes % 16 == 0:
        return adjacency.contiguous()
    room = adjacency.new_empty(classes, triton.cdiv(classes, 16) * 16)[:, :classes]
    return room.copy_(adjacency)


def aggregate(x: Tensor, adjacency: Tensor, classes: int) -> None:
    """Write A·h and Aᵀ·h to columns D:3D of X [B·C, 4D], h in its columns 0:D; the adjacency from :func:`aligned`."""
    _launch(aggregate_kernel, x, adjacency, classes, p_x=x)


def aggregate_backward(d_x: Tensor, adjacency: Tensor, classes: int) -> None:
    """Add Aᵀ·d_(A·h) + A·d_(Aᵀ·h), from columns D:3D of d_X [B·C, 4D], to its columns 0:D."""
    _launch(aggregate_backward_kernel, d_x, adjacency, classes, p_d_x=d_x)


def _launch(kernel: triton.JITFunction, x: Tensor, adjacency: Tensor, classes: int, **tensor: Tensor) -> None:
    tile, dim = tiles("aggregate", x), x.shape[1] // 4
    grid = (len(x) // classes * triton.cdiv(dim, tile["BLOCK_D"]), triton.cdiv(classes, tile["BLOCK_C"]))
    sizes = {"C": classes, "D": dim, "stride_a": adjacency.stride(0)}
    run(kernel, grid, **tensor, p_adjacency=adjacency, **sizes, PRECISION=dot_precision(x), **tile)
