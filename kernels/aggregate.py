"""Aggregation over the label graph (eq. 8) and its gradient: both directions in one pass over the states.

    inward = A·h        outward = Aᵀ·h        d_h += Aᵀ·d_inward + A·d_outward

The gradient may go on through the blend of the step before (gate_kernels.py), without being stored between them.

Shapes: B images, C classes, D channels. A program computes BLOCK_C classes x BLOCK_D channels of one image and loops
over the classes in steps of BLOCK_K. Each tile of h (or of the gradients) is loaded once for both directions; the
adjacency is read in tiles, once per slice of channels. It is treated as dense. The
kernels serve bfloat16 and float16 with few classes; elsewhere both directions are products of the vendor's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssgrl_fast.kernels.gate_kernels import blend_gradients
from ssgrl_fast.kernels.launch import cdiv, run
from ssgrl_fast.kernels.products import product, units
from ssgrl_fast.kernels.tile_tables import tiles


@triton.jit
def aggregate_kernel(
    p_x,  # [B·C, 4D]: writes columns D:3D
    p_h,  # [B·C, D], rows stride_h apart
    p_adjacency,  # [C, C], rows stride_a apart
    p_counts,  # [COUNTS] integers, set to zero for the products that follow; or unused
    C,
    D,
    stride_h,
    stride_a,
    COUNTS,
    COPY: tl.constexpr,  # write h to columns 0:D
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A·h and Aᵀ·h of each image in one pass over h (eq. 8)."""
    if tl.program_id(0) + tl.program_id(1) == 0:
        for i in range(0, COUNTS, 256):
            o = i + tl.arange(0, 256)
            tl.store(p_counts + o, 0, mask=o < COUNTS)
    n_d = tl.cdiv(D, BLOCK_D)
    i_b, i_d = tl.program_id(0) // n_d, tl.program_id(0) % n_d
    o_c, o_d = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_c, m_d = o_c < C, o_d < D
    p_image = p_x + i_b.to(tl.int64) * C * 4 * D + o_d[None, :]
    p_states = p_h + i_b.to(tl.int64) * C * stride_h + o_d[None, :]
    b_in = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    b_out = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    for i_n in range(0, C, BLOCK_K):
        o_n = i_n + tl.arange(0, BLOCK_K)
        m_n = o_n < C
        b_h = tl.load(p_states + o_n[:, None].to(tl.int64) * stride_h, mask=m_n[:, None] & m_d[None, :], other=0)
        if COPY:
            m = (m_n & (tl.program_id(1) == 0))[:, None] & m_d[None, :]
            tl.store(p_image + o_n[:, None].to(tl.int64) * 4 * D, b_h, mask=m)
        b_a = tl.load(
            p_adjacency + o_c[:, None].to(tl.int64) * stride_a + o_n[None, :], mask=m_c[:, None] & m_n[None, :], other=0
        )
        b_in = tl.dot(b_a, b_h, b_in)
        b_a = tl.load(
            p_adjacency + o_n[None, :].to(tl.int64) * stride_a + o_c[:, None], mask=m_c[:, None] & m_n[None, :], other=0
        )
        b_out = tl.dot(b_a, b_h, b_out)
    p_rows = p_image + o_c[:, None].to(tl.int64) * 4 * D
    tl.store(p_rows + D, b_in, mask=m_c[:, None] & m_d[None, :])
    tl.store(p_rows + 2 * D, b_out, mask=m_c[:, None] & m_d[None, :])


@triton.jit
def _halves(b):
    """The left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(b, [b.shape[0], 2, b.shape[1] // 2]), [0, 2, 1]))


@triton.jit
def aggregate_backward_kernel(
    p_d_x,  # [B·C, 4D]: reads columns 0:3D
    p_d_h,  # [B·C, D], rows stride_d apart; may be columns 0:D of p_d_x, and where BLEND it is
    p_adjacency,  # [C, C], rows stride_a apart
    p_g,  # to p_bias_n: of the step before, see blend_gradients; or unused
    p_x,
    p_d_g,
    p_bias_z,
    p_bias_n,
    C,
    D,
    stride_d,
    stride_a,
    BLEND: tl.constexpr,  # pass d_h through the blend of the step before
    WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """d_h = d_h + Aᵀ·d_(A·h) + A·d_(Aᵀ·h), with one accumulator for both sums; and what blend_gradients makes of it."""
    n_d = tl.cdiv(D, BLOCK_D)
    i_b, i_d = tl.program_id(0) // n_d, tl.program_id(0) % n_d
    o_c, o_d = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_c, m_d = o_c < C, o_d < D
    p_image = p_d_x + i_b.to(tl.int64) * C * 4 * D + o_d[None, :]
    r_c, m_rows = o_c[:, None].to(tl.int64), m_c[:, None] & m_d[None, :]
    b_d_h = tl.load(p_image + r_c * 4 * D, mask=m_rows, other=0).to(tl.float32)
    for i_n in range(0, C, BLOCK_K):
        o_n = i_n + tl.arange(0, BLOCK_K)
        m_n = o_n < C
        m, m_a = m_n[:, None] & m_d[None, :], m_c[:, None] & m_n[None, :]
        b_g = tl.load(p_image + o_n[:, None].to(tl.int64) * 4 * D + D, mask=m, other=0)
        b_a = tl.load(p_adjacency + o_n[None, :].to(tl.int64) * stride_a + o_c[:, None], mask=m_a, other=0)
        b_d_h = tl.dot(b_a, b_g, b_d_h)
        b_g = tl.load(p_image + o_n[:, None].to(tl.int64) * 4 * D + 2 * D, mask=m, other=0)
        b_a = tl.load(p_adjacency + o_c[:, None].to(tl.int64) * stride_a + o_n[None, :], mask=m_a, other=0)
        b_d_h = tl.dot(b_a, b_g, b_d_h)
    o_r = i_b.to(tl.int64) * C + r_c
    if BLEND:
        QUARTER: tl.constexpr = BLOCK_D // 4  # of the channels at a time, which takes few registers
        halves = _halves(b_d_h)
        for i in tl.static_range(4):
            o_q = i_d * BLOCK_D + i * QUARTER + tl.arange(0, QUARTER)
            m = m_c[:, None] & (o_q < D)[None, :]
            b_d = _halves(halves[i // 2])[i % 2]
            blend_gradients(b_d, o_r, o_q, m, p_g, p_x, p_d_g, p_d_x, p_bias_z, p_bias_n, D, WIDTH, HAS_BIAS)
            tl.debug_barrier()  # no load of the next quarter is moved before it
    else:
        tl.store(p_d_h + o_r * stride_d + o_d[None, :], b_d_h, mask=m_rows)


KERNEL_CLASSES = 256
"""Up to this many classes the kernels save reads of h and a launch; above, products bound both, and the vendor's take
half the time (counted for an H100, not measured)."""


def aggregate(x: Tensor, adjacency: Tensor, classes: int, start: Tensor | None, counts: Tensor | None) -> None:
    """Write A·h and Aᵀ·h to columns D:3D of X [B·C, 4D]; the adjacency's rows are aligned. h is ``start`` [B·C, D],
    which is copied to columns 0:D, or None where they hold it. Integers ``counts`` are set to zero."""
    own = units(x, x.shape[1] // 4, 0, 1)
    if by_kernel(x, classes):
        h, integers = own if start is None else start, x if counts is None else counts
        options = {"COUNTS": 0 if counts is None else counts.numel(), "COPY": start is not None}
        tensors = {"p_x": x, "p_h": h, "p_counts": integers}
        _launch(aggregate_kernel, x, adjacency, classes, **tensors, stride_h=h.stride(0), **options)
        return
    if start is not None:
        own.copy_(start)
    if counts is not None:
        counts.zero_()
    h, inward, outward, graph = _by_image(x, adjacency, classes)
    product(inward, graph, h)
    product(outward, graph.mT, h)


def aggregate_backward(
    d_x: Tensor, adjacency: Tensor, classes: int, d_h: Tensor, blend: dict[str, Any] | None = None
) -> None:
    """Write d_h + Aᵀ·d_(A·h) + A·d_(Aᵀ·h), from columns 0:3D of d_X [B·C, 4D], to d_h [B·C, D]: to columns 0:D of d_X,
    or elsewhere.

    With ``blend``, arguments of :func:`blend_gradients` for the step before, the kernel (:func:`by_kernel`) also passes
    the sum through them, and columns 0:D get the result.
    """
    if by_kernel(d_x, classes):
        unused = dict.fromkeys(("p_g", "p_x", "p_d_g", "p_bias_z", "p_bias_n"), d_x) | {"WIDTH": 3, "HAS_BIAS": False}
        own = {"p_d_x": d_x, "p_d_h": d_h, "stride_d": d_h.stride(0), "BLEND": blend is not None, **(blend or unused)}
        _launch(aggregate_backward_kernel, d_x, adjacency, classes, **own)
    else:
        own, d_inward, d_outward, graph = _by_image(d_x, adjacency, classes)
        whole = torch.baddbmm(own, graph.mT, d_inward, out=d_h.view(own.shape))
        product(whole, graph, d_outward, add=True)


def by_kernel(x: Tensor, classes: int) -> bool:
    """Whether the kernels above aggregate, not the vendor's products."""
    return x.element_size() == 2 and classes <= KERNEL_CLASSES


def _by_image(x: Tensor, adjacency: Tensor, classes: int) -> tuple[Tensor, ...]:
    """The first three columns of X as [B, C, D], and the adjacency for every image."""
    images, dim = len(x) // classes, x.shape[1] // 4
    columns = [units(x, dim, i, i + 1).view(images, classes, dim) for i in range(3)]
    return *columns, adjacency.expand(images, classes, classes)


def _launch(kernel: triton.JITFunction, x: Tensor, adjacency: Tensor, classes: int, **own: Any) -> None:
    tile, dim = tiles("aggregate", x), x.shape[1] // 4
    grid = (len(x) // classes * cdiv(dim, tile["BLOCK_D"]), cdiv(classes, tile["BLOCK_C"]))
    sizes = {"C": classes, "D": dim, "stride_a": adjacency.stride(0)}
    run(kernel, grid, **own, p_adjacency=adjacency, **sizes, **tile)
