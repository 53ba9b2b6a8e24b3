"""Semantic attention (eq. 3–6): scores, softmax and pooling, and their gradients.

    e[b, c, l] = Σ_k p[k] · tanh(u[b, l, k] · v[c, k])        a = softmax_l(e)        pooled[b] = a[b] · F[b]

Shapes: B images, L locations, C classes, K joint channels, D feature channels; R = B·L rows r = (b, l). No tensor of
size R·C·K is stored. In float32 and float64 every tanh is evaluated (kernels of this file); in bfloat16 and float16
most are computed by matrix products (:mod:`ssgrl_fast.kernels.split_tanh`), and softmax and pooling are one kernel
(:mod:`ssgrl_fast.kernels.pool`).

The exact kernels have one warp per program, with its lanes along k. A lane has a BLOCK_R x BLOCK_C tile of values in
registers, so sums over rows and classes need no exchange between lanes, and the sum over k is reduced across lanes
once, at the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssgrl_fast.kernels import pool, split_tanh, split_tanh_backward
from ssgrl_fast.kernels.activations import sech_squared, tanh, wide, wide_zeros
from ssgrl_fast.kernels.launch import cdiv, run, split
from ssgrl_fast.kernels.products import aligned, aligned_like, product
from ssgrl_fast.kernels.tile_tables import Tiles, tiles


@triton.jit
def scores_exact_kernel(
    p_u,  # [R, K]
    p_v,  # [C, K]
    p_p,  # [K]
    p_scores,  # [parts, B, C, L], to be summed
    R,
    L,
    C,
    K,
    PART,  # channels per part, a multiple of BLOCK_K
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """scores[b, c, l] = Σ_k p[k] tanh(u[r, k] v[c, k]) over the channels of one part."""
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_r, m_c = o_r < R, o_c < C
    p_u_rows = p_u + o_r[:, None].to(tl.int64) * K
    p_v_rows = p_v + o_c[:, None].to(tl.int64) * K
    b_sum = wide_zeros(p_p.dtype.element_ty, [BLOCK_R, BLOCK_C, BLOCK_K])
    first = tl.program_id(2) * PART
    for i_k in range(first, tl.minimum(first + PART, K), BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = o_k < K
        b_u = wide(tl.load(p_u_rows + o_k[None, :], mask=m_r[:, None] & m_k[None, :], other=0))
        b_v = wide(tl.load(p_v_rows + o_k[None, :], mask=m_c[:, None] & m_k[None, :], other=0))
        b_p = tl.load(p_p + o_k, mask=m_k, other=0)
        b_sum += b_p[None, None, :] * tanh(b_u[:, None, :] * b_v[None, :, :])
    o_b = o_r // L
    p_out = p_scores + tl.program_id(2).to(tl.int64) * R * C
    p_out += ((o_b * C)[:, None] + o_c[None, :]).to(tl.int64) * L + (o_r - o_b * L)[:, None]
    tl.store(p_out, tl.sum(b_sum, 2), mask=m_r[:, None] & m_c[None, :])


@triton.jit
def softmax_kernel(
    p_scores,  # [parts, N, L], to be summed
    p_attention,  # [N, L]
    parts,
    N,
    L,
    AT_ONCE: tl.constexpr,  # loads in flight
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """attention = softmax_l(scores) (eq. 5)."""
    o_r, o_l = (
        (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None],
        tl.arange(0, BLOCK_L)[None, :],
    )
    m = (o_r < N) & (o_l < L)
    b_e = tl.zeros([BLOCK_R, BLOCK_L], p_scores.dtype.element_ty)
    for i in range(0, parts, AT_ONCE):
        for j in tl.static_range(AT_ONCE):
            b_e += tl.load(p_scores + ((i + j) * N + o_r) * L + o_l, mask=m & (i + j < parts), other=0)
    b_e = tl.where(o_l < L, b_e, float("-inf"))
    b_e = tl.exp(b_e - tl.max(b_e, 1)[:, None])
    b_a = b_e / tl.sum(b_e, 1)[:, None]
    tl.store(p_attention + o_r * L + o_l, b_a, mask=m)


@triton.jit
def softmax_backward_kernel(
    p_attention,  # [N, L]
    p_grad_attention,  # [N, L], or unused
    p_grad_pooled,  # [N, L], grad_pooled · Fᵀ in the features' dtype, rows stride_p apart; or unused
    p_d_scores,  # [N, L]
    N,
    L,
    stride_p,
    HAS_ATTENTION: tl.constexpr,
    HAS_POOLED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """d_scores = a ⊙ (g - Σ_l a·g), where g is the gradient of the attention from both outputs."""
    o_r, o_l = (
        (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)[:, None],
        tl.arange(0, BLOCK_L)[None, :],
    )
    m = (o_r < N) & (o_l < L)
    b_a = tl.load(p_attention + o_r * L + o_l, mask=m, other=0)
    b_g = tl.zeros([BLOCK_R, BLOCK_L], b_a.dtype)
    if HAS_ATTENTION:
        b_g += tl.load(p_grad_attention + o_r * L + o_l, mask=m, other=0)
    if HAS_POOLED:
        b_g += wide(tl.load(p_grad_pooled + o_r * stride_p + o_l, mask=m, other=0))
    tl.store(p_d_scores + o_r * L + o_l, b_a * (b_g - tl.sum(b_a * b_g, 1)[:, None]), mask=m)


@triton.jit
def scores_exact_backward_kernel(
    p_u,  # [R, K]
    p_v,  # [C, K]
    p_p,  # [K]
    p_d_scores,  # [B, C, L]
    p_d_u,  # [R, K]
    p_d_v,  # [parts, C, K], to be summed
    p_d_p,  # [parts, K], to be summed
    R,
    L,
    C,
    K,
    ROWS,  # rows per part, a multiple of BLOCK_R
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """d_u = Σ_c g p s v,  d_v = Σ_r g p s u,  d_p = Σ_rc g t  with t = tanh(u v), s = 1 - t², g = d_scores.

    One evaluation of tanh is used for all three. A program passes over the rows of its part tile by tile and
    accumulates d_v in its own part of global memory.
    """
    i_part = tl.program_id(0)
    o_k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    m_k = o_k < K
    first, last = i_part * ROWS, tl.minimum(R, (i_part + 1) * ROWS)
    exact = p_p.dtype.element_ty
    b_p = tl.load(p_p + o_k, mask=m_k, other=0)
    b_d_p = wide_zeros(exact, [BLOCK_K])
    for i_r in range(first, last, BLOCK_R):
        o_r = i_r + tl.arange(0, BLOCK_R)
        m_r = o_r < last
        m_u = m_r[:, None] & m_k[None, :]
        o_u = o_r[:, None].to(tl.int64) * K + o_k[None, :]
        o_b = o_r // L
        p_g_rows = p_d_scores + o_b[:, None].to(tl.int64) * C * L + (o_r - o_b * L)[:, None]
        b_u = wide(tl.load(p_u + o_u, mask=m_u, other=0))
        b_d_u = wide_zeros(exact, [BLOCK_R, BLOCK_K])
        for i_c in range(0, C, BLOCK_C):
            o_c = i_c + tl.arange(0, BLOCK_C)
            m_c = o_c < C
            m_rc, m_v = m_r[:, None] & m_c[None, :], m_c[:, None] & m_k[None, :]
            b_v = wide(tl.load(p_v + o_c[:, None].to(tl.int64) * K + o_k[None, :], mask=m_v, other=0))
            b_g = tl.load(p_g_rows + o_c[None, :].to(tl.int64) * L, mask=m_rc, other=0)
            b_x = tl.where(m_rc[:, :, None], b_u[:, None, :] * b_v[None, :, :], 0)
            b_d_p += tl.sum(tl.sum(b_g[:, :, None] * tanh(b_x), 1), 0)
            b_d_x = b_g[:, :, None] * (b_p[None, None, :] * sech_squared(b_x))
            b_d_u += tl.sum(b_d_x * b_v[None, :, :], 1)
            b_d_v = tl.sum(b_d_x * b_u[:, None, :], 0)
            p_own = p_d_v + (i_part.to(tl.int64) * C + o_c[:, None]) * K + o_k[None, :]
            if i_r > first:
                b_d_v += tl.load(p_own, mask=m_v, other=0)
            tl.store(p_own, b_d_v, mask=m_v)
        tl.store(p_d_u + o_u, b_d_u, mask=m_u)
        tl.debug_barrier()  # the next tile reads the d_v that this one stored
    tl.store(p_d_p + i_part.to(tl.int64) * K + o_k, b_d_p, mask=m_k)


_SCRATCH = 128 * 2**20
"""Maximum bytes of the parts of d_v in the exact backward; with fewer classes more parts (programs) fit."""


def forward(u: Tensor, v: Tensor, p: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """pooled [B, C, D] and attention [B, C, L]; the arguments of :func:`ssgrl_fast.functional.semantic_attention`."""
    (images, locations, joint), classes, dim = u.shape, v.shape[0], features.shape[2]
    u, v, p = u.reshape(-1, joint).contiguous(), v.contiguous(), p.contiguous()
    if split_tanh.serves(u.dtype):
        scores = split_tanh.scores(u, v, p, images, locations)
    else:
        tile = tiles("scores_exact", u)
        grid = (cdiv(len(u), tile["BLOCK_R"]), cdiv(classes, tile["BLOCK_C"]))
        parts, part = split(grid[0] * grid[1] // 16, joint, tile["BLOCK_K"], u.device)
        scores = p.new_empty(parts, images, classes, locations)
        sizes = {"R": len(u), "L": locations, "C": classes, "K": joint, "PART": part}
        run(scores_exact_kernel, (*grid, parts), p_u=u, p_v=v, p_p=p, p_scores=scores, **sizes, **tile)
    if pool.serves(features):
        return pool.pool(scores, features.contiguous())
    pooled, attention = features.new_empty(images, classes, dim), torch.empty_like(scores[0])
    count, tile = images * classes, _softmax_tile(attention)
    sizes = {"parts": len(scores), "N": count, "L": locations}
    at_once = 1 if len(scores) == 1 else 4 if len(scores) <= 4 else 16
    grid = (cdiv(count, tile["BLOCK_R"]),)
    run(softmax_kernel, grid, p_scores=scores, p_attention=attention, **sizes, AT_ONCE=at_once, **tile)
    product(pooled, aligned(attention, features.dtype) if features.dtype != attention.dtype else attention, features)
    return pooled, attention


def backward(
    grad_pooled: Tensor | None,  # [B, C, D]
    grad_attention: Tensor | None,  # [B, C, L]
    u: Tensor,
    v: Tensor,
    p: Tensor,
    features: Tensor,
    attention: Tensor,  # [B, C, L]
    need_features: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, v, p and, if ``need_features``, of features (else of shape [0])."""
    (images, locations, joint), classes = u.shape, v.shape[0]
    from_pooled = None
    if grad_pooled is not None:
        from_pooled = aligned_like(features, images, classes, locations)
        product(from_pooled, grad_pooled, features.transpose(1, 2))
    d_features = features.new_empty(features.shape if need_features else (0,))
    if need_features and grad_pooled is not None:
        product(d_features, aligned(attention, features.dtype).transpose(1, 2), grad_pooled)
    elif need_features:
        d_features.zero_()
    d_scores = _through_softmax(attention, grad_attention, from_pooled)
    rows, v, p = u.reshape(-1, joint).contiguous(), v.contiguous(), p.contiguous()
    if split_tanh.serves(u.dtype):
        d_u, d_v, d_p = split_tanh_backward.scores_backward(rows, v, p, d_scores)
    else:
        tile = tiles("scores_exact_backward", u)
        most = max(1, _SCRATCH // (classes * joint * p.element_size()))
        part = cdiv(cdiv(len(rows), tile["BLOCK_R"]), most) * tile["BLOCK_R"]
        parts = cdiv(len(rows), max(part, 1))
        d_u, d_v, d_p = torch.empty_like(rows), p.new_empty(parts, classes, joint), p.new_empty(parts, joint)
        sizes = {"R": len(rows), "L": locations, "C": classes, "K": joint, "ROWS": part}
        run(
            scores_exact_backward_kernel,
            (parts, cdiv(joint, tile["BLOCK_K"])),
            p_u=rows,
            p_v=v,
            p_p=p,
            p_d_scores=d_scores,
            p_d_u=d_u,
            p_d_v=d_v,
            p_d_p=d_p,
            **sizes,
            **tile,
        )
    return d_u.view(u.shape), d_v.sum(0).to(v.dtype), d_p.sum(0), d_features


def _through_softmax(attention: Tensor, grad_attention: Tensor | None, from_pooled: Tensor | None) -> Tensor:
    count, locations = attention.shape[0] * attention.shape[1], attention.shape[2]
    d_scores, tile = torch.empty_like(attention), _softmax_tile(attention)
    run(
        softmax_backward_kernel,
        (cdiv(count, tile["BLOCK_R"]),),
        p_attention=attention,
        p_grad_attention=attention if grad_attention is None else grad_attention.contiguous(),
        p_grad_pooled=attention if from_pooled is None else from_pooled,
        p_d_scores=d_scores,
        N=count,
        L=locations,
        stride_p=locations if from_pooled is None else from_pooled.stride(1),
        HAS_ATTENTION=grad_attention is not None,
        HAS_POOLED=from_pooled is not None,
        **tile,
    )
    return d_scores


def _softmax_tile(attention: Tensor) -> Tiles:
    """Whole rows [.., L], as many as the table's number of values holds."""
    tile, block = dict(tiles("softmax", attention)), 1 << (attention.shape[2] - 1).bit_length()
    rows = max(1, tile.pop("VALUES") // block)
    return tile | {"BLOCK_R": rows, "BLOCK_L": block, "num_warps": 4 if block <= 4096 else 16}
