"""Scores of semantic attention and their gradients by matrix products ("split tanh"), for bfloat16 and float16.

For x = u·v and |x| ≤ reach, tanh and its slope are approximated by short polynomials, tanh x = Σ_j c_j x^(2j+1) and
sech² x = Σ_j d_j x^(2j). Since (u v)^n = u^n v^n,

    Σ_k p_k tanh(u_k v_k) = Σ_j Σ_k (u_k^(2j+1)) · (c_j p_k v_k^(2j+1))

is one tensor-core product per term. Evaluating tanh for each value instead would take the special-function unit as long
as 95 multiply-adds.

With many rows the powers of v are computed once per call by a kernel of their own, so that a tile of rows only loads
them; with few each program computes those that it needs. Those of u are computed in registers. The sum over k is split into parts, which the softmax adds in their order.

A value u_lk *fits* a group of classes if |u_lk| · max|v_k| ≤ reach, with the maximum over the group. Values that do not
fit are left out of the products, and their tanh is evaluated one by one. Every finite input therefore gives the right
result; large ones are only slower. Infinity does not fit, nor does NaN in u. NaN in v may fit, because a GPU's maximum
ignores it; it then fills its own column of the product.

Operands are float16 for both dtypes (11 significant bits where bfloat16 has 8), scaled by powers of two, which is
exact: v by s_v per channel with 1 ≤ max|v/s_v| < 2, u by s_v / 2, and p·u by the inverse of its largest value in a row
of the tile, so that no power of either side exceeds the range of float16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssgrl_fast.kernels.activations import tanh
from ssgrl_fast.kernels.launch import cdiv, run, split
from ssgrl_fast.kernels.tile_tables import tiles


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
def scale(x):
    """The largest power of two not above x, and its inverse, both exact, for 2^-125 ≤ x < 2^126."""
    exponent = (x.to(tl.int32, bitcast=True) >> 23) & 255
    exponent = tl.minimum(tl.maximum(exponent, 2), 252)
    return (exponent << 23).to(tl.float32, bitcast=True), ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def load_rows(p_matrix, o_rows, o_k, N, K):
    """Rows o_rows and columns o_k of [N, K] in float32, zero outside."""
    m = (o_rows < N)[:, None] & (o_k < K)[None, :]
    return tl.load(p_matrix + o_rows[:, None].to(tl.int64) * K + o_k[None, :], mask=m, other=0).to(tl.float32)


@triton.jit
def column(p_matrix, o_rows, k, N, K):
    """Column k of rows o_rows of [N, K] in float32, zero outside."""
    return tl.load(p_matrix + o_rows.to(tl.int64) * K + k, mask=o_rows < N, other=0).to(tl.float32)


@triton.jit
def lifted(b_u, lift, limit):
    """u · lift where it fits, else zero; and where it fits. NaN does not."""
    x = b_u * lift[None, :]
    fits = tl.abs(x) <= limit[None, :]
    return tl.where(fits, x, 0), fits


@triton.jit
def fit_bounds(top, REACH: tl.constexpr):
    """From the largest |v| of channels: the inverse of s_v, whether s_v can be formed, lift, and the largest |u · lift|
    that fits."""
    s_v, inverse = scale(top)
    near = top < 8.5e37
    return inverse, near, s_v * 0.5, tl.where(near, 0.5 * REACH / tl.maximum(top * inverse, 1.0), -1.0)


@triton.jit
def class_powers_kernel(
    p_v,  # [C, K]
    p_powers,  # [terms, C, KP] in float16
    p_bounds,  # [2, groups, KP]: lift and limit
    C,
    K,
    KP,  # K, rounded up
    GROUP,  # classes of a program
    REACH: tl.constexpr,
    FACTORS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """FACTORS[j] · v̂^(2j+1), lift = s_v / 2 and the largest |u · lift| that fits; per channel of a group of classes."""
    i_c, o_k = tl.program_id(0), tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    first, last = i_c * GROUP, tl.minimum(C, (i_c + 1) * GROUP)
    top = tl.zeros([BLOCK_K], tl.float32)
    for i in range(first, last, BLOCK_C):
        top = tl.maximum(top, tl.max(tl.abs(load_rows(p_v, i + tl.arange(0, BLOCK_C), o_k, last, K)), 0))
    inverse, near, lift, limit = fit_bounds(top, REACH)
    p_lift = p_bounds + i_c.to(tl.int64) * KP + o_k
    tl.store(p_lift, lift)
    tl.store(p_lift + tl.num_programs(0).to(tl.int64) * KP, limit)
    for i in range(first, last, BLOCK_C):
        o_c = i + tl.arange(0, BLOCK_C)
        v = tl.where(near[None, :], load_rows(p_v, o_c, o_k, last, K) * inverse[None, :], 0)
        v2, p_row = v * v, p_powers + o_c[:, None].to(tl.int64) * KP + o_k[None, :]
        for j in tl.static_range(len(FACTORS)):
            tl.store(p_row + j * C * KP.to(tl.int64), FACTORS[j] * v, mask=(o_c < last)[:, None])
            v = v * v2


@triton.jit
def _class_side(p_v, p_lift, p_limit, o_c, o_k, C, K, REACH: tl.constexpr, OWN: tl.constexpr):
    """lift and limit of channels for a program's classes; if ``OWN``, computed here, and v̂ [classes, channels]."""
    if OWN:
        b_v = load_rows(p_v, o_c, o_k, C, K)
        inverse, near, lift, limit = fit_bounds(tl.max(tl.abs(b_v), 0), REACH)
        b_v = tl.where(near[None, :], b_v * inverse[None, :], 0)
    else:
        lift, limit = tl.load(p_lift + o_k), tl.load(p_limit + o_k)
        b_v = lift
    return lift, limit, b_v


@triton.jit
def scores_kernel(
    p_u,  # [R, K]
    p_v,  # [C, K]
    p_p,  # [K]
    p_powers,  # [terms, C, KP]; or unused
    p_bounds,  # [2, class tiles, KP]; or unused
    p_scores,  # [parts, B, C, L], to be summed
    R,
    L,
    C,
    K,
    KP,
    PART,  # channels per part, a multiple of BLOCK_K
    REACH: tl.constexpr,
    FACTORS: tl.constexpr,
    OWN: tl.constexpr,  # each program computes the powers of v for itself
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
        lift, limit, v = _class_side(p_v, p_lift, p_limit, o_c, o_k, C, K, REACH, OWN)
        x, fits = lifted(load_rows(p_u, o_r, o_k, R, K), lift, limit)
        b_wide |= tl.max(tl.where(fits, 0, 1), 1)
        y = x * (0.25 * tl.load(p_p + o_k, mask=o_k < K, other=0))[None, :]
        s_y, inverse = scale(tl.max(tl.abs(y), 1))
        y, x2, v2 = y * inverse[:, None], x * x, v * v
        b_sum = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        for j in tl.static_range(len(FACTORS)):
            if OWN:
                b_v = (FACTORS[j] * v).to(tl.float16)
            else:
                b_v = tl.load(p_class + j * C * KP.to(tl.int64) + i_k, mask=(o_c < C)[:, None], other=0)
            b_sum = tl.dot(y.to(tl.float16), tl.trans(b_v), b_sum)
            y, v = y * x2, v * v2
        b_scores += b_sum * s_y[:, None]
    if tl.max(b_wide, 0) > 0:
        for i_k in tl.range(first, last, BLOCK_K, num_stages=1):
            o_k = i_k + o_in
            lift, limit, _ = _class_side(p_v, p_lift, p_limit, o_c, o_k, C, K, REACH, OWN)
            _, fits = lifted(load_rows(p_u, o_r, o_k, R, K), lift, limit)
            b_wide_channels = tl.max(tl.where(fits, 0, 1), 0)
            if tl.max(b_wide_channels, 0) > 0:
                for i in tl.range(BLOCK_K, num_stages=1):
                    if tl.sum(tl.where(o_in == i, b_wide_channels, 0), 0) > 0:
                        c_u, c_v = column(p_u, o_r, i_k + i, R, K), column(p_v, o_c, i_k + i, C, K)
                        c_lift = tl.sum(tl.where(o_in == i, lift, 0), 0)
                        c_limit = tl.sum(tl.where(o_in == i, limit, 0), 0)
                        c_u = tl.where(tl.abs(c_u * c_lift) <= c_limit, 0, c_u)
                        b_scores += tl.load(p_p + i_k + i) * tanh(c_u[:, None] * c_v[None, :], p_u.dtype.element_ty)
    o_b = o_r // L
    p_out = p_scores + tl.program_id(2).to(tl.int64) * R * C
    p_out += ((o_b * C)[:, None] + o_c[None, :]).to(tl.int64) * L + (o_r - o_b * L)[:, None]
    tl.store(p_out, b_scores, mask=(o_r < R)[:, None] & (o_c < C)[None, :])


def serves(dtype: torch.dtype) -> bool:
    """Whether the kernels of this file support the dtype."""
    return dtype in FORMS


OWN_POWERS = 64
"""Up to this many tiles of rows and classes each program computes the powers of v that it needs: one launch less."""


def scores(u: Tensor, v: Tensor, p: Tensor, images: int, locations: int) -> Tensor:
    """The scores of u [R, K], v [C, K], p [K] in parts [parts, B, C, L], to be summed; a part is some channels'."""
    form, tile, (classes, joint) = FORMS[u.dtype], tiles("split_scores", u), v.shape
    # u is halved by its lift and p quartered, so that no power of either side exceeds the range of float16
    factors = tuple(4 * c * 2.0 ** (2 * j + 1) for j, c in enumerate(form.tanh))
    grid = (cdiv(len(u), tile["BLOCK_R"]), cdiv(classes, tile["BLOCK_C"]))
    own = grid[0] * grid[1] <= OWN_POWERS and joint % 16 == 0  # else too few registers
    powers, limits = (v, p) if own else class_powers(v, factors, form.reach, tile["BLOCK_C"])
    parts, part = split(grid[0] * grid[1], joint, tile["BLOCK_K"], u.device)
    out = p.new_empty(parts, images, classes, locations)
    sizes = {"R": len(u), "L": locations, "C": classes, "K": joint, "KP": powers.shape[-1], "PART": part}
    inputs = {"p_u": u, "p_v": v, "p_p": p, "p_powers": powers, "p_bounds": limits, "p_scores": out}
    options = {"REACH": form.reach, "FACTORS": factors, "OWN": own}
    run(scores_kernel, (*grid, parts), **inputs, **sizes, **options, **tile)
    return out


def class_powers(v: Tensor, factors: tuple[float, ...], reach: float, group: int) -> tuple[Tensor, Tensor]:
    """Powers of v [C, K] for every row of u, [terms, C, KP] in float16, and the bounds [2, groups of classes, KP]."""
    (classes, joint), tile = v.shape, tiles("class_powers", v)
    padded = cdiv(joint, 64) * 64
    grid = (cdiv(classes, group), padded // tile["BLOCK_K"])
    powers = v.new_empty(len(factors), classes, padded, dtype=torch.float16)
    bounds = v.new_empty(2, grid[0], padded, dtype=torch.float32)
    sizes = {"C": classes, "K": joint, "KP": padded, "GROUP": group, "REACH": reach, "FACTORS": factors}
    run(class_powers_kernel, grid, p_v=v, p_powers=powers, p_bounds=bounds, **sizes, **tile)
    return powers, bounds
