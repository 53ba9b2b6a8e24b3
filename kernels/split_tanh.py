"""Scores of semantic attention and their gradients by matrix products ("split tanh"), for bfloat16 and float16.

For x = u·v and |x| ≤ reach, tanh and its slope are approximated by short polynomials, tanh x = Σ_j c_j x^(2j+1) and
sech² x = Σ_j d_j x^(2j). Since (u v)^n = u^n v^n,

    Σ_k p_k tanh(u_k v_k) = Σ_j Σ_k (u_k^(2j+1)) · (c_j p_k v_k^(2j+1))

is one tensor-core product per term. Evaluating tanh for each value instead would take the special-function unit as long
as 95 multiply-adds.

A channel k *fits* a tile if max|u_k| · max|v_k| ≤ reach over the values that the tile has loaded; channels that do not
fit are evaluated value by value. Every finite input therefore gives the right result; large ones are only slower.
Infinity does not fit. NaN may fit, because a GPU's maximum ignores it; it then fills its own row or column of the
product.

Operands are float16 for both dtypes (11 significant bits where bfloat16 has 8), scaled by powers of two, which is
exact: u = s_u·û, v = s_v·v̂ with 1 ≤ max|û|, max|v̂| < 2 per channel and w = s_u·s_v, so that no power of û or w·v̂
exceeds the range of float16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssgrl_fast.kernels.activations import sech_squared, tanh
from ssgrl_fast.kernels.launch import multiprocessors, run
from ssgrl_fast.kernels.tile_tables import Tiles, tiles


@dataclass(frozen=True)
class Form:
    """The polynomials for a dtype: Chebyshev fits in x² on [0, reach²]; their largest error there, against float64."""

    reach: float
    tanh: tuple[float, ...]
    slope: tuple[float, ...]


FORMS = {
    # errors: tanh 3e-4 relative, sech² 5e-4 absolute; bfloat16 rounds to 2e-3
    torch.bfloat16: Form(
        2.0,
        (
            0.9997714452510996,
            -0.3287376667105625,
            0.11752640261351158,
            -0.03203953529557087,
            0.005254947298804881,
            -0.00036924497162094116,
        ),
        (
            0.9994916236850546,
            -0.986096452264707,
            0.6016427824152948,
            -0.2545289816605264,
            0.06926078480173622,
            -0.010583165665739677,
            0.0006801292534596235,
        ),
    ),
    # errors: tanh 7e-6 relative, sech² 6e-5 absolute; float16 rounds to 2.4e-4
    torch.float16: Form(
        1.0,
        (
            0.9999934257136104,
            -0.3329909819816724,
            0.1304185683539615,
            -0.044897063402679654,
            0.009075753104899413,
        ),
        (
            0.9999388349534242,
            -0.9967893156125976,
            0.6389910598653248,
            -0.28982278433573055,
            0.06770654397664445,
        ),
    ),
}


@triton.jit
def _scale(x):
    """The largest power of two not above x, and its inverse, both exact, for 2^-125 ≤ x < 2^126."""
    exponent = (x.to(tl.int32, bitcast=True) >> 23) & 255
    exponent = tl.minimum(tl.maximum(exponent, 2), 252)
    return (exponent << 23).to(tl.float32, bitcast=True), ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _top(x, axis: tl.constexpr):
    """max|x| along an axis."""
    return tl.max(tl.abs(x), axis)


@triton.jit
def _fits(top_u, top_v, REACH: tl.constexpr):
    """Whether |u v| ≤ REACH for a channel, and its values are small enough for :func:`_scale`."""
    return (top_u * top_v <= REACH) & (top_u < 8.5e37) & (top_v < 8.5e37)


@triton.jit
def _load(p_matrix, o_rows, o_k, N, K):
    """Rows o_rows and columns o_k of [N, K] in float32, zero outside."""
    m = (o_rows < N)[:, None] & (o_k < K)[None, :]
    return tl.load(p_matrix + o_rows[:, None].to(tl.int64) * K + o_k[None, :], mask=m, other=0).to(tl.float32)


@triton.jit
def _column(p_matrix, o_rows, k, N, K):
    """Column k of rows o_rows of [N, K] in float32, zero outside."""
    return tl.load(p_matrix + o_rows.to(tl.int64) * K + k, mask=o_rows < N, other=0).to(tl.float32)


@triton.jit
def _load_d_scores(p_d_scores, o_r, o_c, R, L, C):
    """d_scores [B, C, L] as the tile [rows (b, l), classes]."""
    o_b = o_r // L
    m = (o_r < R)[:, None] & (o_c < C)[None, :]
    o_rows = (o_b.to(tl.int64) * C * L + (o_r - o_b * L))[:, None]
    return tl.load(p_d_scores + o_rows + o_c[None, :].to(tl.int64) * L, mask=m, other=0)


@triton.jit
def class_powers_kernel(
    p_v,  # [C, K]
    p_powers,  # [terms, C, KP] in float16
    p_bounds,  # [2, class tiles, KP]: lift and limit
    C,
    K,
    KP,
    REACH: tl.constexpr,
    FACTORS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """FACTORS[j] · v̂^(2j+1), lift = s_v / 2 and the largest |u · lift| that fits; per channel of a tile of classes."""
    i_c, o_k = tl.program_id(0), tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    o_c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    b_v = _load(p_v, o_c, o_k, C, K)
    top = tl.max(tl.abs(b_v), 0)
    s_v, inverse = _scale(top)
    near = top < 8.5e37
    v = tl.where(near[None, :], b_v * inverse[None, :], 0)
    p_lift = p_bounds + i_c.to(tl.int64) * KP + o_k
    tl.store(p_lift, s_v * 0.5)
    limit = 0.5 * REACH / tl.maximum(top * inverse, 1.0)
    tl.store(p_lift + tl.num_programs(0).to(tl.int64) * KP, tl.where(near, limit, -1.0))
    v2 = v * v
    p_row = p_powers + o_c[:, None].to(tl.int64) * KP + o_k[None, :]
    for j in tl.static_range(len(FACTORS)):
        tl.store(p_row, FACTORS[j] * v, mask=(o_c < C)[:, None])
        v, p_row = v * v2, p_row + C.to(tl.int64) * KP


@triton.jit
def scores_kernel(
    p_u,  # [R, K]
    p_v,  # [C, K]
    p_p,  # [K]
    p_powers,  # [terms, C, KP]
    p_bounds,  # [2, class tiles, KP]
    p_scores,  # [parts, B, C, L], to be summed
    R,
    L,
    C,
    K,
    KP,
    PART,  # channels per part, a multiple of BLOCK_K
    TERMS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """scores[b, c, l] = Σ_k p[k] tanh(u[r, k] v[c, k]) over the channels of one part."""
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    o_in = tl.arange(0, BLOCK_K)
    first = tl.program_id(2) * PART
    last = tl.minimum(first + PART, K)
    p_lift = p_bounds + tl.program_id(1).to(tl.int64) * KP
    p_limit = p_lift + tl.num_programs(1).to(tl.int64) * KP
    p_class = p_powers + o_c[:, None].to(tl.int64) * KP + o_in[None, :]
    b_scores = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    b_wide = tl.zeros([BLOCK_R], tl.int32)
    for i_k in range(first, last, BLOCK_K):
        o_k = i_k + o_in
        x, fits = _lifted(_load(p_u, o_r, o_k, R, K), p_lift + o_k, p_limit + o_k)
        b_wide |= tl.max(tl.where(fits, 0, 1), 1)
        y = x * (0.25 * tl.load(p_p + o_k, mask=o_k < K, other=0))[None, :]
        s_y, inverse = _scale(tl.max(tl.abs(y), 1))
        y, x2 = y * inverse[:, None], x * x
        b_sum = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        for j in tl.static_range(TERMS):
            b_v = tl.load(p_class + j * C.to(tl.int64) * KP + i_k, mask=(o_c < C)[:, None], other=0)
            b_sum = tl.dot(y.to(tl.float16), tl.trans(b_v), b_sum)
            y = y * x2
        b_scores += b_sum * s_y[:, None]
    if tl.max(b_wide, 0) > 0:
        for i_k in tl.range(first, last, BLOCK_K, num_stages=1):
            o_k = i_k + o_in
            _, fits = _lifted(_load(p_u, o_r, o_k, R, K), p_lift + o_k, p_limit + o_k)
            b_wide_channels = tl.max(tl.where(fits, 0, 1), 0)
            if tl.max(b_wide_channels, 0) > 0:
                for i in tl.range(BLOCK_K, num_stages=1):
                    if tl.sum(tl.where(o_in == i, b_wide_channels, 0), 0) > 0:
                        c_u, c_v = _column(p_u, o_r, i_k + i, R, K), _column(p_v, o_c, i_k + i, C, K)
                        lift, limit = tl.load(p_lift + i_k + i), tl.load(p_limit + i_k + i)
                        c_u = tl.where(tl.abs(c_u * lift) <= limit, 0, c_u)
                        b_scores += tl.load(p_p + i_k + i) * tanh(c_u[:, None] * c_v[None, :], p_u.dtype.element_ty)
    o_b = o_r // L
    p_out = p_scores + tl.program_id(2).to(tl.int64) * R * C
    p_out += ((o_b * C)[:, None] + o_c[None, :]).to(tl.int64) * L + (o_r - o_b * L)[:, None]
    tl.store(p_out, b_scores, mask=(o_r < R)[:, None] & (o_c < C)[None, :])


@triton.jit
def _lifted(b_u, p_lift, p_limit):
    """u · lift where it fits, else zero; and where it fits. NaN does not."""
    x = b_u * tl.load(p_lift)[None, :]
    fits = tl.abs(x) <= tl.load(p_limit)[None, :]
    return tl.where(fits, x, 0), fits


@triton.jit
def _odd_sums(b_g, b_x, sums, COUNT: tl.constexpr, s_g):
    """sums[j] + g · x^(2j+1) for each j, g [rows, n] and x [n, k], g scaled by 1 / s_g beforehand."""
    x, x2, out = b_x, b_x * b_x, ()
    for j in tl.static_range(COUNT):
        out = out + (sums[j] + s_g * tl.dot(b_g, x.to(tl.float16)),)
        x = x * x2
    return out


@triton.jit
def _from_sums(sums, b_x, SLOPE: tl.constexpr):
    """Σ_j d_j x^(2j) · sums[j]."""
    y, x2 = SLOPE[0] * sums[0], b_x * b_x
    power = x2
    for j in tl.static_range(1, len(SLOPE)):
        y += SLOPE[j] * power * sums[j]
        power = power * x2
    return y


@triton.jit
def d_rows_kernel(
    p_u,  # [R, K]
    p_v,  # [C, K]
    p_p,  # [K]
    p_d_scores,  # [B, C, L]
    p_d_u,  # [R, K]
    p_d_p,  # [programs along R, K], to be summed
    R,
    L,
    C,
    K,
    REACH: tl.constexpr,
    TANH: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """d_u = p Σ_c g sech²(u v) v and d_p = Σ_rc g tanh(u v), g = d_scores, both from the sums Σ_c g v^(2j+1)."""
    i_r, i_k = tl.program_id(0), tl.program_id(1) * BLOCK_K
    o_r, o_in = i_r * BLOCK_R + tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_K)
    o_k = i_k + o_in
    b_u = _load(p_u, o_r, o_k, R, K)
    b_p = tl.load(p_p + o_k, mask=o_k < K, other=0)
    top_u, top_v = _top(b_u, 0), tl.zeros([BLOCK_K], tl.float32)
    for i_c in range(0, C, BLOCK_C):
        top_v = tl.maximum(top_v, _top(_load(p_v, i_c + tl.arange(0, BLOCK_C), o_k, C, K), 0))
    fits = _fits(top_u, top_v, REACH)
    b_d_u = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
    b_d_p = tl.zeros([BLOCK_K], tl.float32)
    if tl.max(fits.to(tl.int32), 0) > 0:
        s_u, inverse_u = _scale(top_u)
        s_v, inverse_v = _scale(top_v)
        sums = ()
        for _j in tl.static_range(len(SLOPE)):
            sums = sums + (tl.zeros([BLOCK_R, BLOCK_K], tl.float32),)
        for i_c in range(0, C, BLOCK_C):
            o_c = i_c + tl.arange(0, BLOCK_C)
            v = tl.where(fits[None, :], _load(p_v, o_c, o_k, C, K) * inverse_v[None, :], 0)
            b_g = _load_d_scores(p_d_scores, o_r, o_c, R, L, C)
            s_g, inverse_g = _scale(tl.max(_top(b_g, 0), 0))
            sums = _odd_sums((b_g * inverse_g).to(tl.float16), v, sums, len(SLOPE), s_g)
        x = tl.where(fits[None, :], b_u * inverse_u[None, :], 0) * tl.where(fits, s_u * s_v, 0)[None, :]
        b_d_u = _from_sums(sums, x, SLOPE) * tl.where(fits, b_p * s_v, 0)[None, :]
        b_d_p = tl.sum(_from_sums(sums, x, TANH) * x, 0)
    if tl.max(((~fits) & (o_k < K)).to(tl.int32), 0) > 0:
        for i in range(BLOCK_K):
            if tl.sum(tl.where((o_in == i) & (~fits) & (o_k < K), 1, 0), 0) > 0:
                c_u = _column(p_u, o_r, i_k + i, R, K)
                c_d_u, c_d_p = tl.zeros([BLOCK_R], tl.float32), 0.0
                for i_c in range(0, C, BLOCK_C):
                    o_c = i_c + tl.arange(0, BLOCK_C)
                    c_v = _column(p_v, o_c, i_k + i, C, K)
                    b_g = _load_d_scores(p_d_scores, o_r, o_c, R, L, C)
                    b_x = tl.where((o_r < R)[:, None] & (o_c < C)[None, :], c_u[:, None] * c_v[None, :], 0)
                    c_d_u += tl.sum(b_g * (sech_squared(b_x, p_u.dtype.element_ty) * c_v[None, :]), 1)
                    c_d_p += tl.sum(tl.sum(b_g * tanh(b_x, p_u.dtype.element_ty), 1), 0)
                here = o_in == i
                b_d_u = tl.where(here[None, :], (c_d_u * tl.load(p_p + i_k + i))[:, None], b_d_u)
                b_d_p = tl.where(here, c_d_p, b_d_p)
    m = (o_r < R)[:, None] & (o_k < K)[None, :]
    tl.store(p_d_u + o_r[:, None].to(tl.int64) * K + o_k[None, :], b_d_u, mask=m)
    tl.store(p_d_p + i_r.to(tl.int64) * K + o_k, b_d_p, mask=o_k < K)


@triton.jit
def d_classes_kernel(
    p_u,  # [R, K]
    p_v,  # [C, K]
    p_p,  # [K]
    p_d_scores,  # [B, C, L]
    p_d_v,  # [parts, C, K], to be summed
    R,
    L,
    C,
    K,
    ROWS,  # rows per part, a multiple of BLOCK_R
    REACH: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """d_v = p Σ_r g sech²(u v) u over one part of the rows, from the sums Σ_r g u^(2j+1)."""
    n_c = tl.cdiv(C, BLOCK_C)
    i_part, i_k = tl.program_id(0) // n_c, tl.program_id(1) * BLOCK_K
    o_c, o_in = (tl.program_id(0) % n_c) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    o_k, first, last = i_k + o_in, i_part * ROWS, tl.minimum(R, (i_part + 1) * ROWS)
    b_v = _load(p_v, o_c, o_k, C, K)
    b_p = tl.load(p_p + o_k, mask=o_k < K, other=0)
    top_u, top_v = tl.zeros([BLOCK_K], tl.float32), _top(b_v, 0)
    for i_r in range(first, last, BLOCK_R):
        top_u = tl.maximum(top_u, _top(_load(p_u, i_r + tl.arange(0, BLOCK_R), o_k, R, K), 0))
    fits = _fits(top_u, top_v, REACH)
    b_d_v = tl.zeros([BLOCK_C, BLOCK_K], tl.float32)
    if tl.max(fits.to(tl.int32), 0) > 0:
        s_u, inverse_u = _scale(top_u)
        s_v, inverse_v = _scale(top_v)
        sums = ()
        for _j in tl.static_range(len(SLOPE)):
            sums = sums + (tl.zeros([BLOCK_C, BLOCK_K], tl.float32),)
        for i_r in range(first, last, BLOCK_R):
            o_r = i_r + tl.arange(0, BLOCK_R)
            u = tl.where(fits[None, :], _load(p_u, o_r, o_k, R, K) * inverse_u[None, :], 0)
            b_g = _load_d_scores(p_d_scores, o_r, o_c, R, L, C)
            s_g, inverse_g = _scale(tl.max(_top(b_g, 0), 0))
            sums = _odd_sums(tl.trans((b_g * inverse_g).to(tl.float16)), u, sums, len(SLOPE), s_g)
        x = tl.where(fits[None, :], b_v * inverse_v[None, :], 0) * tl.where(fits, s_u * s_v, 0)[None, :]
        b_d_v = _from_sums(sums, x, SLOPE) * tl.where(fits, b_p * s_u, 0)[None, :]
    if tl.max(((~fits) & (o_k < K)).to(tl.int32), 0) > 0:
        for i in range(BLOCK_K):
            if tl.sum(tl.where((o_in == i) & (~fits) & (o_k < K), 1, 0), 0) > 0:
                c_v = _column(p_v, o_c, i_k + i, C, K)
                c_d_v = tl.zeros([BLOCK_C], tl.float32)
                for i_r in range(first, last, BLOCK_R):
                    o_r = i_r + tl.arange(0, BLOCK_R)
                    c_u = _column(p_u, o_r, i_k + i, R, K)
                    b_g = _load_d_scores(p_d_scores, o_r, o_c, R, L, C)
                    b_x = tl.where((o_r < R)[:, None] & (o_c < C)[None, :], c_u[:, None] * c_v[None, :], 0)
                    c_d_v += tl.sum(b_g * (sech_squared(b_x, p_u.dtype.element_ty) * c_u[:, None]), 0)
                b_d_v = tl.where((o_in == i)[None, :], (c_d_v * tl.load(p_p + i_k + i))[:, None], b_d_v)
    p_out = p_d_v + (i_part.to(tl.int64) * C + o_c[:, None]) * K + o_k[None, :]
    tl.store(p_out, b_d_v, mask=(o_c < C)[:, None] & (o_k < K)[None, :])


PROGRAMS = 4
"""Programs per multiprocessor at which the sum over the channels is split no further."""


def serves(dtype: torch.dtype) -> bool:
    """Whether the kernels of this file support the dtype."""
    return dtype in FORMS


def scores(u: Tensor, v: Tensor, p: Tensor, images: int, locations: int) -> Tensor:
    """The scores of u [R, K], v [C, K], p [K] in parts [parts, B, C, L], to be summed; a part is some channels'."""
    form, tile, (classes, joint) = FORMS[u.dtype], tiles("split_scores", u), v.shape
    # u is halved by its lift and p quartered, so that no power of either side exceeds the range of float16
    factors = tuple(4 * c * 2.0 ** (2 * j + 1) for j, c in enumerate(form.tanh))
    powers, bounds = class_powers(v, factors, form.reach, tile)
    grid = (triton.cdiv(len(u), tile["BLOCK_R"]), triton.cdiv(classes, tile["BLOCK_C"]))
    parts, part = channel_parts(grid[0] * grid[1], joint, tile["BLOCK_K"], u.device)
    out = p.new_empty(parts, images, classes, locations)
    sizes = {"R": len(u), "L": locations, "C": classes, "K": joint, "KP": powers.shape[2], "PART": part}
    inputs = {"p_u": u, "p_v": v, "p_p": p, "p_powers": powers, "p_bounds": bounds, "p_scores": out}
    run(scores_kernel, (*grid, parts), **inputs, **sizes, TERMS=len(factors), **tile)
    return out


def class_powers(v: Tensor, factors: tuple[float, ...], reach: float, tile: Tiles) -> tuple[Tensor, Tensor]:
    """Powers of v [C, K] for every row of u: [terms, C, KP] in float16, and their bounds [2, class tiles, KP]."""
    (classes, joint), block = v.shape, tile["BLOCK_K"]
    grid = (triton.cdiv(classes, tile["BLOCK_C"]), triton.cdiv(joint, block))
    powers = v.new_empty(len(factors), classes, grid[1] * block, dtype=torch.float16)
    bounds = v.new_empty(2, grid[0], grid[1] * block, dtype=torch.float32)
    sizes = {"C": classes, "K": joint, "KP": grid[1] * block, "BLOCK_C": tile["BLOCK_C"], "BLOCK_K": block}
    outputs = {"p_powers": powers, "p_bounds": bounds}
    run(class_powers_kernel, grid, p_v=v, **outputs, **sizes, REACH=reach, FACTORS=factors, num_warps=4)
    return powers, bounds


def channel_parts(programs: int, joint: int, block: int, device: torch.device) -> tuple[int, int]:
    """Into how many parts of how many channels the sum over K is split, so that the grid fills the GPU."""
    blocks = max(1, triton.cdiv(joint, block))
    part = triton.cdiv(blocks, max(1, min(blocks, PROGRAMS * multiprocessors(device) // max(programs, 1))))
    return triton.cdiv(blocks, part), part * block


def scores_backward(u: Tensor, v: Tensor, p: Tensor, d_scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d_u [R, K], and d_v [parts, C, K] and d_p [parts, K] to be summed, from d_scores [B, C, L]."""
    form, sizes = FORMS[u.dtype], _sizes(u, v, d_scores)
    inputs: dict[str, Any] = {"p_u": u, "p_v": v, "p_p": p, "p_d_scores": d_scores, **sizes, "REACH": form.reach}
    (rows, joint), classes = u.shape, len(v)
    tile = tiles("split_d_rows", u)
    parts, slices = triton.cdiv(rows, tile["BLOCK_R"]), triton.cdiv(joint, tile["BLOCK_K"])
    d_u, d_p = torch.empty_like(u), p.new_empty(parts, joint)
    options = {"TANH": form.tanh, "SLOPE": form.slope}
    run(d_rows_kernel, (parts, slices), p_d_u=d_u, p_d_p=d_p, **inputs, **options, **tile)
    tile = dict(tiles("split_d_classes", u))
    part = tile.pop("ROWS")
    parts, slices = triton.cdiv(rows, part), triton.cdiv(joint, tile["BLOCK_K"])
    d_v = p.new_empty(parts, classes, joint)
    grid = (parts * triton.cdiv(classes, tile["BLOCK_C"]), slices)
    run(d_classes_kernel, grid, p_d_v=d_v, ROWS=part, SLOPE=form.slope, **inputs, **tile)
    return d_u, d_v, d_p


def _sizes(u: Tensor, v: Tensor, scores: Tensor) -> dict[str, int]:
    return {"R": len(u), "L": scores.shape[2], "C": len(v), "K": u.shape[1]}
