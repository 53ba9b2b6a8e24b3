"""Attention and pooling from the scores (eq. 5 and 6) in one kernel, for bfloat16 and float16.

    attention[b, c] = softmax_l(scores[b, c])        pooled[b] = attention[b] · F[b]

Shapes: B images, L locations, C classes, D channels. A program has BLOCK_C classes of one image. It adds the parts of
their scores once, and multiplies the attention, which stays in its registers, with its share of the channels, BLOCK_D
at a time. With more locations than a tile has it goes over the scores twice: for the maximum and the sum of each row,
then for the attention itself.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ssgrl_fast.kernels import launch
from ssgrl_fast.kernels.launch import cdiv
from ssgrl_fast.kernels.tile_tables import tiles


@triton.jit
def _load_scores(p_scores, o_row, o_l, m_c, parts, stride, L, AT_ONCE: tl.constexpr):
    """The sum of the parts of the scores of some rows and locations, -inf outside; its parts are ``stride`` apart."""
    m = m_c[:, None] & (o_l < L)[None, :]
    p_row = p_scores + o_row[:, None] + o_l[None, :]
    b_e = tl.zeros(m.shape, tl.float32)
    for i in range(0, parts, AT_ONCE):
        for j in tl.static_range(AT_ONCE):
            b_e += tl.load(p_row + (i + j) * stride, mask=m & (i + j < parts), other=0)
    return tl.where((o_l < L)[None, :], b_e, float("-inf"))


@triton.jit
def _attend(b_e, top, total, p_attention, o_row, o_l, m, L):
    """The attention of scores whose rows have this maximum and sum of exponentials; stored where ``m``."""
    b_a = tl.exp(b_e - top[:, None]) / total[:, None]
    tl.store(p_attention + o_row[:, None] + o_l[None, :], b_a, mask=m[:, None] & (o_l < L)[None, :])
    return b_a


@triton.jit
def _load_features(p_image, o_l, o_d, L, D):
    m = (o_l < L)[:, None] & (o_d < D)[None, :]
    return tl.load(p_image + o_l[:, None].to(tl.int64) * D + o_d[None, :], mask=m, other=0)


@triton.jit
def pool_kernel(
    p_scores,  # [parts, B, C, L], to be summed
    p_attention,  # [B, C, L]
    p_features,  # [B, L, D]
    p_pooled,  # [B, C, D]
    parts,
    stride,  # elements of a part
    C,
    L,
    D,
    CHANNELS,  # of a program, a multiple of BLOCK_D
    WHOLE: tl.constexpr,  # all locations are in one tile
    AT_ONCE: tl.constexpr,  # parts whose loads are in flight
    BLOCK_C: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """attention = softmax_l(scores), pooled = attention · features (eq. 5 and 6)."""
    n_c = tl.cdiv(C, BLOCK_C)
    i_b = (tl.program_id(0) // n_c).to(tl.int64)
    o_c, o_l = tl.program_id(0) % n_c * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_L)
    m_c, o_node = o_c < C, i_b * C + o_c
    m_own = m_c & (tl.program_id(1) == 0)  # the program that stores the attention
    o_row, p_image, p_out = o_node * L, p_features + i_b * L * D, p_pooled + o_node[:, None] * D
    first = tl.program_id(1) * CHANNELS
    last = tl.minimum(first + CHANNELS, D)
    if WHOLE:
        b_e = _load_scores(p_scores, o_row, o_l, m_c, parts, stride, L, AT_ONCE)
        top = tl.max(b_e, 1)
        total = tl.sum(tl.exp(b_e - top[:, None]), 1)
        b_a = _attend(b_e, top, total, p_attention, o_row, o_l, m_own, L).to(p_features.dtype.element_ty)
        for i_d in range(first, last, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            b_out = tl.dot(b_a, _load_features(p_image, o_l, o_d, L, D))
            tl.store(p_out + o_d[None, :], b_out, mask=m_c[:, None] & (o_d < D)[None, :])
    else:
        top, total = tl.full([BLOCK_C], float("-inf"), tl.float32), tl.zeros([BLOCK_C], tl.float32)
        for i_l in range(0, L, BLOCK_L):
            b_e = _load_scores(p_scores, o_row, i_l + o_l, m_c, parts, stride, L, AT_ONCE)
            higher = tl.maximum(top, tl.max(b_e, 1))
            shift = tl.where(higher == float("-inf"), 0.0, higher)  # until a score is more, sums of e^-inf, not of NaN
            total = total * tl.exp(top - shift) + tl.sum(tl.exp(b_e - shift[:, None]), 1)
            top = higher
        for i_d in range(first, last, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            b_out = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
            for i_l in range(0, L, BLOCK_L):
                b_e = _load_scores(p_scores, o_row, i_l + o_l, m_c, parts, stride, L, AT_ONCE)
                b_a = _attend(b_e, top, total, p_attention, o_row, i_l + o_l, m_own & (i_d == first), L)
                b_f = _load_features(p_image, i_l + o_l, o_d, L, D)
                b_out = tl.dot(b_a.to(b_f.dtype), b_f, b_out)
            tl.store(p_out + o_d[None, :], b_out, mask=m_c[:, None] & (o_d < D)[None, :])


def serves(features: Tensor) -> bool:
    """Whether the kernel pools these features: of two bytes, their rows aligned for vector loads."""
    return features.element_size() == 2 and features.shape[2] % 16 == 0


def pool(scores: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """pooled [B, C, D] and attention [B, C, L] of scores in parts [parts, B, C, L] and features [B, L, D]."""
    parts, images, classes, locations = scores.shape
    processors, dim = launch.multiprocessors(features.device), features.shape[2]
    wide = tiles("pool", features)
    few = images * cdiv(classes, wide["BLOCK_C"]) * cdiv(dim, wide["BLOCK_D"]) <= processors
    tile = tiles("pool_few", features) if few else wide
    whole, most = locations <= tile["BLOCK_L"], max(16, 1 << (locations - 1).bit_length())
    block = min(most, tile["BLOCK_L"]) if whole else tile["BLOCK_L"] // 4  # with sums in registers, fewer values fit
    rows, blocks = images * cdiv(classes, tile["BLOCK_C"]), cdiv(dim, tile["BLOCK_D"])
    channels = cdiv(blocks, max(1, min(blocks, processors // max(rows, 1)))) * tile["BLOCK_D"]
    pooled, attention = features.new_empty(images, classes, dim), scores.new_empty(scores.shape[1:])
    launch.run(
        pool_kernel,
        (rows, cdiv(dim, channels)),
        p_scores=scores,
        p_attention=attention,
        p_features=features,
        p_pooled=pooled,
        parts=parts,
        stride=attention.numel(),
        C=classes,
        L=locations,
        D=dim,
        CHANNELS=channels,
        WHOLE=whole,
        **tile | {"BLOCK_L": block},
    )
    return pooled, attention
