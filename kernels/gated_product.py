"""The products of eq. 9 and 10, and one of their gradients, with what follows them in their epilogues, for bfloat16 and
float16.

    gates   [G_z | G_r] = X[:, :3D] @ weight_zrᵀ     r⊙h with r = σ(G_r + b_r)
    blend   G_n = X[:, D:] @ weight_hᵀ               (1 - z)⊙h + z⊙n with z = σ(G_z + b_z), n = tanh(G_n + b_n)
    output  o = [h_T, h0] @ weight_oᵀ + b_o          the last rows in parts, which the classifiers' kernel adds
    reset   d = d_G_n @ weight_h[:, 2D:]             gradients of G_r and h from d, that of r⊙h (gate_kernels.py)

Shapes: N = B·C rows, D channels, O outputs, K the extent that a product sums over. A program computes BLOCK_M rows x
two pieces of BLOCK_N columns; the gates' pieces are z and r of the same channels. Tiles that fill whole waves of the
GPU have one program each. Every tile of the last wave has SPLIT programs, each for a part of K; the one that finishes
last adds the parts in their order, so results are the same from run to run.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssgrl_fast.kernels import launch
from ssgrl_fast.kernels.activations import sigmoid_both, tanh, wide
from ssgrl_fast.kernels.gate_kernels import gate_gradients
from ssgrl_fast.kernels.launch import cdiv
from ssgrl_fast.kernels.tile_tables import Tiles, architecture, tiles

GATES, BLEND, OUTPUT, RESET = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
GROUP = tl.constexpr(16)
"""Tiles of rows that are computed at about the same time, so that they share the weights in the L2 cache."""
FEW = 128
"""Up to this many rows reading the weights takes longer than multiplying: narrower tiles, and never the vendor's."""
MOST_PARTS = 8
RATE, RATE_ELSEWHERE = {"sm_90": 0.9}, 0.75
"""Rate of a Triton product relative to cuBLAS. H100: 684–712 against 762–770 TFLOP/s, measured (products.py). Elsewhere
reckoned for an A100, one program of which waits for its products."""
AFTER = {0: 0.06, 1: 0.16, 2: 0.25, 3: 0.73}
"""Time of what the epilogue saves as a share of the product at D = 2048, reckoned from bytes: the gate kernel, the
blend kernel, the concatenation of h_T and h0, the kernel of the gradients of r⊙h."""
EPILOGUE = {0: (1, 5), 1: (3, 6), 2: (1, 1), 3: (12, 12)}
"""Time of the epilogue of a whole tile, and of the last part of one, in blocks of K: reckoned for an H100."""


@triton.jit
def _weights(p_w, o, stride_w, BY_ROW: tl.constexpr):
    """A tile [k, columns] of Wᵀ from rows of W at p_w [columns, 1]; or of W from its columns at p_w [1, columns]."""
    b_w = tl.trans(tl.load(p_w + o[None, :])) if BY_ROW else tl.load(p_w + o[:, None].to(tl.int64) * stride_w)
    return b_w


@triton.jit
def _sums(p_a, p_w, stride_w, o_k, m, first, last, second, sums_0, sums_1, BY_ROW: tl.constexpr, BLOCK_K: tl.constexpr):
    """Add A·Wᵀ (or A·W) over the blocks first .. last - 1 of k: columns at p_w and ``second`` elements behind."""
    for i_k in range(first, last):
        o = i_k * BLOCK_K + o_k
        b_a = tl.load(p_a + o[None, :], mask=m[:, None], other=0)
        sums_0 = tl.dot(b_a, _weights(p_w, o, stride_w, BY_ROW), sums_0)
        sums_1 = tl.dot(b_a, _weights(p_w + second, o, stride_w, BY_ROW), sums_1)
    return sums_0, sums_1


@triton.jit
def _row(p_bias, o_d, HAS_BIAS: tl.constexpr):
    return wide(tl.load(p_bias + o_d))[None, :] if HAS_BIAS else 0.0


@triton.jit
def gated_product_kernel(
    p_a,  # [N, K], or its first K_FIRST columns
    p_rest,  # output: [N, K - K_FIRST], the other columns; reset: the gradient of G [N, 3D], reads 2D:3D, writes D:2D
    p_w,  # [columns, K]; reset: [K, columns]
    p_g,  # [N, 3D]: gates write 0:2D, blend reads 0:D and writes 2D:3D, reset reads D:2D; output: o [N, O]
    p_h,  # [N, D]; reset: X [N, 4D]; or unused
    p_out,  # gates: r⊙h [N, D]; blend: the new h [N, D]; output: parts of o [SPLIT, N, O], of its last rows; reset: the
    # gradient of X [N, 4D], adds to 0:D, 3D:4D for its own use
    p_bias,  # of r, n or o; or unused
    p_bias_z,  # blend: [D]; or unused
    p_parts,  # [tiles that are split, SPLIT, 2, BLOCK_M, BLOCK_N]; or unused
    p_counts,  # [tiles that are split], zero before the launch; or unused
    N,
    D,  # channels; output: O
    K,
    K_FIRST,
    stride_a,
    stride_w,
    stride_h,
    stride_out,
    WHOLE,  # tiles of one program
    SPLIT,  # programs of every other tile
    KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # which tile, and which part of K
    like: tl.constexpr = p_out.dtype.element_ty
    step: tl.constexpr = BLOCK_N if KIND == GATES else 2 * BLOCK_N
    i, blocks = tl.program_id(0) - WHOLE, K // BLOCK_K
    parts = tl.where(i < 0, 1, SPLIT)
    tile, part = tl.where(i < 0, i + WHOLE, WHOLE + i // SPLIT), tl.where(i < 0, 0, i % SPLIT)
    first = part * tl.cdiv(blocks, parts)
    last = tl.minimum(first + tl.cdiv(blocks, parts), blocks)
    n_m, n_n = tl.cdiv(N, BLOCK_M), D // step
    group, within = tile // (GROUP * n_n), tile % (GROUP * n_n)
    rows = tl.minimum(n_m - group * GROUP, GROUP)
    i_m = (group * GROUP + within % rows) * BLOCK_M
    o_m, o_k, o_n = i_m + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_N)
    o_0, r_m, m_m = (within // rows) * step + o_n, o_m[:, None].to(tl.int64), o_m < N
    # the product
    by_row: tl.constexpr = KIND != RESET
    second = (D if KIND == GATES else BLOCK_N) * (stride_w.to(tl.int64) if by_row else 1)
    p_rows, o_first = p_w + (o_0[:, None].to(tl.int64) * stride_w if by_row else o_0[None, :]), K_FIRST // BLOCK_K
    sums_0, sums_1 = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    end = tl.minimum(last, o_first) if KIND == OUTPUT else last
    p_first, w = p_a + r_m * stride_a, stride_w
    sums_0, sums_1 = _sums(p_first, p_rows, w, o_k, m_m, first, end, second, sums_0, sums_1, by_row, BLOCK_K)
    if KIND == OUTPUT:
        p_others, begin = p_rest + r_m * stride_a - K_FIRST, tl.maximum(first, o_first)
        sums_0, sums_1 = _sums(p_others, p_rows, w, o_k, m_m, begin, last, second, sums_0, sums_1, True, BLOCK_K)
        if part == 0:
            sums_0 += _row(p_bias, o_0, HAS_BIAS)
            sums_1 += _row(p_bias, o_0 + BLOCK_N, HAS_BIAS)
        if i < 0:
            p_o = p_g + r_m * stride_out + o_0[None, :]
            tl.store(p_o, sums_0, mask=m_m[:, None])
            tl.store(p_o + BLOCK_N, sums_1, mask=m_m[:, None])
        else:
            p_part = p_out + (part.to(tl.int64) * N + r_m) * stride_out + o_0[None, :]
            tl.store(p_part, sums_0, mask=m_m[:, None])
            tl.store(p_part + BLOCK_N, sums_1, mask=m_m[:, None])
    else:
        # store the sums, or this part of them
        width: tl.constexpr = 4 if KIND == RESET else 3
        p_all = (p_out if KIND == RESET else p_g) + (0 if KIND == GATES else (width - 1) * D)
        next_g = D if KIND == GATES else BLOCK_N
        p_tile = p_parts + (i // SPLIT).to(tl.int64) * SPLIT * 2 * BLOCK_M * BLOCK_N + o_n[None, :]
        if i < 0:
            p_sums = p_all + r_m * width * D + o_0[None, :]
            tl.store(p_sums, sums_0, mask=m_m[:, None])
            tl.store(p_sums + next_g, sums_1, mask=m_m[:, None])
        else:
            p_part = p_tile + (part * 2 * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]) * BLOCK_N
            tl.store(p_part, sums_0)
            tl.store(p_part + BLOCK_M * BLOCK_N, sums_1)
        tl.debug_barrier()  # other threads read what each has stored, and one of them counts
        complete = i < 0
        if i >= 0:
            complete = tl.atomic_add(p_counts + i // SPLIT, 1, sem="acq_rel", scope="gpu") == SPLIT - 1
        # what follows the product, a half of the rows at a time, which takes few registers
        if complete:
            for i_r in range(0, BLOCK_M, BLOCK_M // 2):
                o_in = i_r + tl.arange(0, BLOCK_M // 2)[:, None]
                r_r, m = (i_m + o_in).to(tl.int64), i_m + o_in < N
                for j in tl.static_range(2):
                    o_d = o_0 if KIND == GATES else o_0 + j * BLOCK_N
                    p_sums = p_all + r_r * width * D + j * next_g + o_0[None, :]
                    b_sum = tl.zeros([BLOCK_M // 2, BLOCK_N], tl.float32)
                    if i >= 0:
                        for s in range(SPLIT):
                            p_part = p_tile + ((s * 2 + j) * BLOCK_M + o_in) * BLOCK_N
                            b_sum += tl.load(p_part, cache_modifier=".cg")
                        if KIND != RESET:
                            tl.store(p_sums, b_sum, mask=m)
                    elif KIND != GATES or j == 1:
                        b_sum = wide(tl.load(p_sums, mask=m, other=0))
                    p_new = p_out + r_r * stride_out + o_d[None, :]
                    if KIND == RESET:
                        gate_gradients(b_sum, r_r, o_d, m, p_g, p_h, p_rest, p_out, p_bias, D, 3, False, HAS_BIAS)
                    elif KIND == BLEND or j == 1:
                        b_h = wide(tl.load(p_h + r_r * stride_h + o_d[None, :], mask=m, other=0))
                        b_sum += _row(p_bias, o_d, HAS_BIAS)
                        if KIND == GATES:
                            r, _ = sigmoid_both(b_sum, like, SHORT=True)
                            tl.store(p_new, r * b_h, mask=m)
                        else:
                            b_z = wide(tl.load(p_g + r_r * 3 * D + o_d[None, :], mask=m, other=0))
                            z, keep = sigmoid_both(b_z + _row(p_bias_z, o_d, HAS_BIAS), like, SHORT=True)
                            tl.store(p_new, keep * b_h + z * tanh(b_sum, like), mask=m)


@dataclass(frozen=True)
class Share:
    """How a product is shared out: tiles of one program, programs of every other tile, all tiles."""

    whole: int
    split: int
    tiles: int

    @property
    def programs(self) -> int:
        """Of the launch."""
        return self.whole + (self.tiles - self.whole) * self.split


@functools.cache
def share(
    rows: int, columns: int, k: int, kind: int, slots: int, rate: float, m: int, n: int, block: int
) -> Share | None:
    """How the tiles [m, n] of a product [rows, k] x [k, columns] are shared out on ``slots`` programs at a time, in
    blocks of k; None where the vendor's product and what follows it are expected to be faster.

    Counted in blocks of one program after another; a part costs about two more to write and one to read.
    """
    count, blocks, (whole_end, last_end) = cdiv(rows, m) * (columns // n), k // block, EPILOGUE[kind]
    of_reset = kind == RESET.value
    whole = count // slots * slots
    if kind == OUTPUT.value:  # whole rows of tiles
        group = GROUP.value * (columns // n)
        whole = whole // group * group

    def cost(parts: int) -> int:
        if parts == 1:
            return cdiv(count - whole, slots) * (blocks + whole_end)
        return cdiv((count - whole) * parts, slots) * (cdiv(blocks, parts) + 2) + parts + last_end

    parts = min(range(1, min(MOST_PARTS, blocks) + 1), key=cost)
    # the vendor's product of d_G_n is one for A·h, Aᵀ·h and r⊙h, two thirds of which stay with it
    waves = cdiv(3 * count, slots) - cdiv(2 * count, slots) if of_reset else cdiv(count, slots)
    vendor = waves * blocks + AFTER[kind] * count * blocks / slots
    if (rows > FEW or of_reset) and cdiv(whole, slots) * (blocks + whole_end) + cost(parts) > rate * vendor:
        return None
    return Share(count if parts == 1 else whole, parts, count)


class GatedProducts:
    """The products of one call with at most ``rows`` rows, and what their programs share."""

    def __init__(self, like: Tensor, rows: int) -> None:
        self.like, self.rows, self.shares = like, rows, dict[int, Share]()
        self.tile: Tiles = tiles("gated_product_few" if rows <= FEW else "gated_product", like)
        self.slots = launch.multiprocessors(like.device)  # each holds one program
        self.counts: Tensor | None = None  # zero before each step
        self.parts = like

    def plan(self, kind: tl.constexpr, weight: Tensor) -> Share | None:
        """How the product with a weight is shared out; None if it is the vendor's."""
        (columns, k), kind = weight.shape, kind.value
        m, n, block = self.tile["BLOCK_M"], 2 * self.tile["BLOCK_N"], self.tile["BLOCK_K"]
        if self.like.element_size() != 2 or not self.rows or columns % n or k % (2 * block) or weight.stride(1) != 1:
            return None
        rate = RATE.get(architecture(self.like.device), RATE_ELSEWHERE)
        found = share(self.rows, columns, k, kind, self.slots, rate, m, n, block)
        if found is not None:
            self.shares[kind] = found
        return found

    def take_room(self, runs: int = 0) -> None:
        """Memory for the parts of the planned products, and for their counts: of both products of a step, to be set to
        zero before each step, or of so many ``runs`` of one product."""
        split = [(one.tiles - one.whole, one.split) for one in self.shares.values() if one.split > 1]
        if split:
            new = self.like.new_zeros if runs else self.like.new_empty
            self.counts = new((runs or 2, max(count for count, _ in split)), dtype=torch.int32)
            size = 2 * self.tile["BLOCK_M"] * self.tile["BLOCK_N"] * max(count * parts for count, parts in split)
            self.parts = self.like.new_empty(size, dtype=torch.float32)

    def whole_rows(self, kind: tl.constexpr, weight: Tensor) -> int:
        """The rows before those that a planned product leaves in parts."""
        whole, columns = self.shares[kind.value].whole, 2 * self.tile["BLOCK_N"]
        return min(whole // (len(weight) // columns) * self.tile["BLOCK_M"], self.rows)

    def run(
        self,
        kind: tl.constexpr,
        a: Tensor,
        weight: Tensor,
        out: Tensor,  # [N, D], [SPLIT, N, O] or [N, 4D]
        *,
        place: int = 0,  # of its counts
        rest: Tensor | None = None,
        g: Tensor | None = None,
        h: Tensor | None = None,
        bias: Tensor | None = None,
        bias_z: Tensor | None = None,
    ) -> None:
        """Launch a planned product; see the kernel for its arguments."""
        shared, (columns, k) = self.shares[kind.value], weight.shape
        launch.run(
            gated_product_kernel,
            (shared.programs,),
            p_a=a,
            p_rest=a if rest is None else rest,
            p_w=weight,
            p_g=a if g is None else g,
            p_h=a if h is None else h,
            p_out=out,
            p_bias=a if bias is None else bias,
            p_bias_z=a if bias_z is None else bias_z,
            p_parts=self.parts,
            p_counts=self.parts if self.counts is None else self.counts[place],
            N=self.rows,
            D=columns // 2 if kind.value == GATES.value else columns,  # for reset both extents are D
            K=k,
            K_FIRST=a.shape[1],
            stride_a=a.stride(0),
            stride_w=weight.stride(0),
            stride_h=a.stride(0) if h is None else h.stride(0),
            stride_out=out.stride(-2),
            WHOLE=shared.whole,
            SPLIT=shared.split,
            KIND=kind.value,
            HAS_BIAS=bias is not None,
            **self.tile,
        )
