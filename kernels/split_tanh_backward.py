"""Gradients of the scores of semantic attention by matrix products (split_tanh.py), for bfloat16 and float16.

With g = d_scores, and û, v̂ scaled as there:

    d_u = p Σ_c g sech²(u v) v = p Σ_j d_j u^(2j) Σ_c g v^(2j+1)
    d_v = p Σ_r g sech²(u v) u = p Σ_j d_j v^(2j) Σ_r g u^(2j+1)        d_p = Σ_c Σ_j c_j v^(2j+1) Σ_r g u^(2j+1)

so each term is one product over classes or rows. A value of u fits if |u| · max|v| ≤ reach over all classes; values
that do not fit are evaluated one by one. Operands are float16: g is divided by a power of two for each row, v for each
channel, u for each channel and part of the rows, and sums over rows are split into parts.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssgrl_fast.kernels.activations import INTERPRETED, sech_squared, tanh
from ssgrl_fast.kernels.launch import cdiv, run, split
from ssgrl_fast.kernels.split_tanh import FORMS, class_powers, column, lifted, load_rows, scale
from ssgrl_fast.kernels.tile_tables import tiles

FEW = tl.constexpr(64 if INTERPRETED else 16)
"""Classes or rows at a time where values are evaluated one by one: more need more registers than the products."""


@triton.jit
def _load_d_scores(p_d_scores, o_r, o_c, R, L, C):
    """d_scores [B, C, L] as the tile [rows (b, l), classes], loaded along l."""
    o_b = o_r // L
    m = (o_c < C)[:, None] & (o_r < R)[None, :]
    o_rows = (o_b.to(tl.int64) * C * L + (o_r - o_b * L))[None, :]
    return tl.trans(tl.load(p_d_scores + o_rows + o_c[:, None].to(tl.int64) * L, mask=m, other=0))


@triton.jit
def _load_g(p_g, o_r, o_c, last, CP):
    """Rows below ``last`` and classes of the scaled gradient [R, CP], which is zero from C on."""
    p_rows = p_g + o_r[:, None].to(tl.int64) * CP + o_c[None, :]
    return tl.load(p_rows, mask=(o_r < last)[:, None], other=0)


@triton.jit
def scaled_gradient_kernel(
    p_d_scores,  # [B, C, L]
    p_g,  # [R, CP] in float16
    p_scale,  # [R]
    R,
    L,
    C,
    CP,  # a multiple of BLOCK_C
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """d_scores by rows (b, l), each divided by the power of two below its largest finite magnitude; zero from C on."""
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    top = tl.zeros([BLOCK_R], tl.float32)
    for i_c in range(0, C, BLOCK_C):
        b_g = tl.abs(_load_d_scores(p_d_scores, o_r, i_c + tl.arange(0, BLOCK_C), R, L, C))
        top = tl.maximum(top, tl.max(tl.where(b_g < float("inf"), b_g, 0), 1))
    s_g, inverse = scale(top)
    for i_c in range(0, CP, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        b_g = _load_d_scores(p_d_scores, o_r, o_c, R, L, C) * inverse[:, None]
        tl.store(p_g + o_r[:, None].to(tl.int64) * CP + o_c[None, :], b_g, mask=(o_r < R)[:, None])
    tl.store(p_scale + o_r, s_g, mask=o_r < R)


@triton.jit
def d_rows_kernel(
    p_u,  # [R, K]
    p_v,  # [C, K]
    p_p,  # [K]
    p_d_scores,  # [B, C, L]
    p_g,  # [R, CP]
    p_scale,  # [R]
    p_powers,  # [terms, C, KP]
    p_bounds,  # [2, KP]
    p_d_u,  # [R, K]
    p_tops,  # [programs along R, KP]: max|u| over the values that fit
    R,
    L,
    C,
    K,
    CP,
    KP,
    TERMS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """d_u by Horner's rule: from the highest term on, the sum so far times x² is where the next product adds."""
    i_r, i_k = tl.program_id(0), tl.program_id(1) * BLOCK_K
    o_r, o_in = i_r * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
    o_k, m_r = i_k + o_in, o_r < R
    b_u = load_rows(p_u, o_r, o_k, R, K)
    x, fits = lifted(b_u, tl.load(p_bounds + o_k), tl.load(p_bounds + KP + o_k))
    tl.store(p_tops + i_r.to(tl.int64) * KP + o_k, tl.max(tl.where(fits, tl.abs(b_u), 0), 0))
    x2 = x * x
    b_d_u = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    for i_c in range(0, C, BLOCK_C):
        o_c = i_c + tl.arange(0, BLOCK_C)
        b_g = _load_g(p_g, o_r, o_c, R, CP)
        p_class = p_powers + o_c[:, None].to(tl.int64) * KP + o_k[None, :]
        b_sum = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
        for j in tl.static_range(TERMS):
            p_term = p_class + (TERMS - 1 - j) * C * KP.to(tl.int64)
            b_sum = tl.dot(b_g, tl.load(p_term, mask=(o_c < C)[:, None], other=0), b_sum * x2)
        b_d_u += b_sum
    s_g, s_v = tl.load(p_scale + o_r, mask=m_r, other=0), 2 * tl.load(p_bounds + o_k)
    b_p = tl.load(p_p + o_k, mask=o_k < K, other=0)
    b_d_u = tl.where(fits, b_d_u * s_g[:, None] * (b_p * s_v)[None, :], 0)
    wide = tl.max(tl.where(fits, 0, 1), 0)
    if tl.max(wide, 0) > 0:
        for i in tl.range(BLOCK_K, num_stages=1):
            if tl.sum(tl.where(o_in == i, wide, 0), 0) > 0:
                c_u = column(p_u, o_r, i_k + i, R, K)
                c_fits = tl.abs(c_u * tl.load(p_bounds + i_k + i)) <= tl.load(p_bounds + KP + i_k + i)
                c_d_u = tl.zeros([BLOCK_R], tl.float32)
                for i_c in tl.range(0, C, FEW, num_stages=1):
                    o_c = i_c + tl.arange(0, FEW)
                    c_v = column(p_v, o_c, i_k + i, C, K)
                    b_x = tl.where(m_r[:, None] & (o_c < C)[None, :], c_u[:, None] * c_v[None, :], 0)
                    b_slope = sech_squared(b_x, p_u.dtype.element_ty) * c_v[None, :]
                    c_d_u += tl.sum(_load_d_scores(p_d_scores, o_r, o_c, R, L, C) * b_slope, 1)
                c_d_u = tl.where(c_fits, 0, c_d_u * tl.load(p_p + i_k + i))
                b_d_u += tl.where((o_in == i)[None, :], c_d_u[:, None], 0)
    m = m_r[:, None] & (o_k < K)[None, :]
    tl.store(p_d_u + o_r[:, None].to(tl.int64) * K + o_k[None, :], b_d_u, mask=m)


@triton.jit
def d_classes_kernel(
    p_u,  # [R, K]
    p_v,  # [C, K]
    p_p,  # [K]
    p_d_scores,  # [B, C, L]
    p_g,  # [R, CP]
    p_scale,  # [R]
    p_bounds,  # [2, KP]
    p_tops,  # [R / ROWS_TOP, KP]
    p_d_v,  # [parts, C, K], to be summed
    p_d_p,  # [parts, programs along C, K], to be summed
    R,
    L,
    C,
    K,
    CP,
    KP,
    ROWS,  # rows per part, a multiple of BLOCK_R and ROWS_TOP
    ROWS_TOP: tl.constexpr,
    TANH: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """d_v and d_p over one part of the rows, from the sums Σ_r g u^(2j+1)."""
    i_part, i_k = tl.program_id(2), tl.program_id(1) * BLOCK_K
    o_c, o_in = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    o_k, first, last = i_k + o_in, i_part * ROWS, tl.minimum(R, (i_part + 1) * ROWS)
    p_lift, p_limit = p_bounds + o_k, p_bounds + KP + o_k  # loaded where they are used: registers are few
    top_u, top_g = tl.zeros([BLOCK_K], tl.float32), tl.zeros([BLOCK_R], tl.float32)
    for i_r in range(first, last, ROWS_TOP):
        top_u = tl.maximum(top_u, tl.load(p_tops + i_r // ROWS_TOP * KP + o_k))
    for i_r in range(first, last, BLOCK_R):
        o_r = i_r + tl.arange(0, BLOCK_R)
        top_g = tl.maximum(top_g, tl.load(p_scale + o_r, mask=o_r < last, other=0))
    s_u, inverse_u = scale(top_u)
    s_g, inverse_g = scale(tl.max(top_g, 0))
    sums = ()
    for _j in tl.static_range(len(SLOPE)):
        sums = sums + (tl.zeros([BLOCK_C, BLOCK_K], tl.float32),)
    wide = tl.zeros([BLOCK_R], tl.int32)
    for i_r in range(first, last, BLOCK_R):
        o_r = i_r + tl.arange(0, BLOCK_R)
        b_u = load_rows(p_u, o_r, o_k, last, K)
        _, fits = lifted(b_u, tl.load(p_lift), tl.load(p_limit))
        wide |= tl.max(tl.where(fits, 0, 1), 1)
        u = tl.where(fits, b_u * inverse_u[None, :], 0)
        u2, y = u * u, u * (tl.load(p_scale + o_r, mask=o_r < last, other=0) * inverse_g)[:, None]
        b_g = _load_g(p_g, o_r, o_c, last, CP)
        now = ()
        for j in tl.static_range(len(SLOPE)):
            now = now + (tl.dot(tl.trans(b_g), y.to(tl.float16), sums[j]),)
            y = y * u2
        sums = now
    b_v = load_rows(p_v, o_c, o_k, C, K)
    b_p = tl.load(p_p + o_k, mask=o_k < K, other=0)
    x = tl.where((tl.load(p_limit) >= 0)[None, :], b_v * s_u[None, :], 0)
    x2 = x * x
    power = x2
    b_d_v, b_tanh = SLOPE[0] * sums[0], TANH[0] * sums[0]
    for j in tl.static_range(1, len(SLOPE)):
        term = power * sums[j]
        b_d_v += SLOPE[j] * term
        if j < len(TANH):
            b_tanh += TANH[j] * term
        power = power * x2
    b_d_v *= (b_p * s_u * s_g)[None, :]
    b_d_p = tl.sum(b_tanh * x, 0) * s_g
    if tl.max(wide, 0) > 0:
        channels = tl.zeros([BLOCK_K], tl.int32)
        for i_r in tl.range(first, last, BLOCK_R, num_stages=1):
            b_u = load_rows(p_u, i_r + tl.arange(0, BLOCK_R), o_k, last, K)
            _, fits = lifted(b_u, tl.load(p_lift), tl.load(p_limit))
            channels |= tl.max(tl.where(fits, 0, 1), 0)
        for i in tl.range(BLOCK_K, num_stages=1):
            if tl.sum(tl.where(o_in == i, channels, 0), 0) > 0:
                c_v = column(p_v, o_c, i_k + i, C, K)
                c_lift, c_limit = tl.load(p_bounds + i_k + i), tl.load(p_bounds + KP + i_k + i)
                c_d_v, c_d_p = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
                for i_r in tl.range(first, last, FEW, num_stages=1):
                    o_r = i_r + tl.arange(0, FEW)
                    c_u = column(p_u, o_r, i_k + i, last, K)
                    c_u = tl.where(tl.abs(c_u * c_lift) <= c_limit, 0, c_u)
                    b_d = _load_d_scores(p_d_scores, o_r, o_c, last, L, C)
                    b_x = tl.where((o_r < last)[:, None] & (o_c < C)[None, :], c_u[:, None] * c_v[None, :], 0)
                    c_d_v += tl.sum(b_d * (sech_squared(b_x, p_u.dtype.element_ty) * c_u[:, None]), 0)
                    c_d_p += tl.sum(b_d * tanh(b_x, p_u.dtype.element_ty), 0)
                here = o_in == i
                b_d_v += tl.where(here[None, :], (c_d_v * tl.load(p_p + i_k + i))[:, None], 0)
                b_d_p += tl.where(here, tl.sum(c_d_p, 0), 0)
    p_out = p_d_v + (i_part.to(tl.int64) * C + o_c[:, None]) * K + o_k[None, :]
    tl.store(p_out, b_d_v, mask=(o_c < C)[:, None] & (o_k < K)[None, :])
    i_p = i_part * tl.num_programs(0) + tl.program_id(0)
    tl.store(p_d_p + i_p.to(tl.int64) * K + o_k, b_d_p, mask=o_k < K)


def scores_backward(u: Tensor, v: Tensor, p: Tensor, d_scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d_u [R, K], and d_v [parts, C, K] and d_p [parts, K] to be summed, from d_scores [B, C, L]."""
    form, (rows, joint), classes, locations = FORMS[u.dtype], u.shape, len(v), d_scores.shape[2]
    by_row, by_class = tiles("split_d_rows", u), tiles("split_d_classes", u)
    # x is halved by its lift: the coefficients of its powers take the factors of 4
    factors = tuple(d * 4.0**j for j, d in enumerate(form.slope))
    powers, bounds = class_powers(v, factors, form.reach, classes)
    tile, padded = tiles("scaled_gradient", u), cdiv(classes, 128) * 128
    g, scales = u.new_empty(rows, padded, dtype=torch.float16), p.new_empty(rows)
    sizes = {"R": rows, "L": locations, "C": classes, "CP": padded}
    grid = (cdiv(rows, tile["BLOCK_R"]),)
    run(scaled_gradient_kernel, grid, p_d_scores=d_scores, p_g=g, p_scale=scales, **sizes, **tile)
    given: dict[str, Any] = {"p_u": u, "p_v": v, "p_p": p, "p_d_scores": d_scores, "p_g": g, "p_scale": scales}
    given |= {"p_bounds": bounds, **sizes, "K": joint, "KP": powers.shape[2]}
    grid = (cdiv(rows, by_row["BLOCK_R"]), cdiv(joint, by_row["BLOCK_K"]))
    d_u, tops = torch.empty_like(u), p.new_empty(grid[0], powers.shape[2])
    run(d_rows_kernel, grid, p_powers=powers, **given, p_d_u=d_u, p_tops=tops, TERMS=len(factors), **by_row)
    grid = (cdiv(classes, by_class["BLOCK_C"]), cdiv(joint, by_class["BLOCK_K"]))
    parts, part = split(grid[0] * grid[1], rows, max(by_row["BLOCK_R"], by_class["BLOCK_R"]), u.device)
    d_v, d_p = p.new_empty(parts, classes, joint), p.new_empty(parts * grid[0], joint)
    options = {"SLOPE": form.slope, "TANH": form.tanh, "ROWS": part, "ROWS_TOP": by_row["BLOCK_R"]}
    run(d_classes_kernel, (*grid, parts), p_tops=tops, p_d_v=d_v, p_d_p=d_p, **given, **options, **by_class)
    return d_u, d_v, d_p
