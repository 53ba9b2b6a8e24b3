"""Output network and class-specific rows (eq. 10): label scores from the last and the first state, and their gradients.

    o = tanh(h_T·W_aᵀ + h0·W_bᵀ + b_o)        logits[b, c] = o[b, c] · weight_c[c] + b_c[c]

Shapes: B images, C classes, D channels, L locations, O outputs, N = B·C rows; W_a = weight_o[:, :D], W_b = weight_o[:,
D:]. f_o is one product over [h_T, h0], because its halves can cancel: their sum is formed in the product's accumulators
and rounded once. In bfloat16 and float16 it is a kernel that reads both where they are (gated_product.py), if counting
says that it is faster than copying them side by side for the vendor's product. In float32 and float64, if identity 4
pays, h0·W_bᵀ is computed as a·(F·W_bᵀ).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

from ssgrl_fast.kernels import low_rank
from ssgrl_fast.kernels.activations import sech_squared, tanh, wide, wide_zeros
from ssgrl_fast.kernels.gated_product import OUTPUT, GatedProducts
from ssgrl_fast.kernels.launch import cdiv, run
from ssgrl_fast.kernels.products import product, units
from ssgrl_fast.kernels.tile_tables import tiles
from ssgrl_fast.reference.factors import low_rank_output


@triton.jit
def classify_kernel(
    p_output,  # [N, O], before the tanh: reads the first WHOLE rows, and if SAVE writes the others
    p_parts,  # [parts, N, O], whose sum the others are; or unused
    p_weight_c,  # [C, O]
    p_bias_c,  # [C], or unused
    p_logits,  # [N]
    parts,
    N,
    C,
    O,
    WHOLE,
    HAS_BIAS: tl.constexpr,
    SAVE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """logits[n] = Σ_o tanh(output[n, o]) · weight_c[c, o] + b_c[c], c = n mod C."""
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_c = o_r % C
    like: tl.constexpr = p_output.dtype.element_ty
    b_sum = wide_zeros(like, [BLOCK_R, BLOCK_O])
    for i_o in range(0, O, BLOCK_O):
        o_o = i_o + tl.arange(0, BLOCK_O)
        m, m_parts = (o_r < N)[:, None] & (o_o < O)[None, :], (o_r >= WHOLE)[:, None]
        p_o = p_output + o_r[:, None] * O + o_o[None, :]
        b_o = wide(tl.load(p_o, mask=m & (o_r < WHOLE)[:, None], other=0))
        for i in range(parts):
            p_part = p_parts + (i * N + o_r)[:, None] * O + o_o[None, :]
            b_o += wide(tl.load(p_part, mask=m & m_parts, other=0))
        if SAVE:
            tl.store(p_o, b_o, mask=m & m_parts)
        b_w = wide(tl.load(p_weight_c + o_c[:, None] * O + o_o[None, :], mask=m, other=0))
        b_sum += tanh(b_o, like) * b_w
    b_logits = tl.sum(b_sum, 1)
    if HAS_BIAS:
        b_logits += wide(tl.load(p_bias_c + o_c))
    tl.store(p_logits + o_r, b_logits, mask=o_r < N)


@triton.jit
def classify_backward_kernel(
    p_grad,  # [N]
    p_output,  # [N, O], before the tanh
    p_weight_c,  # [C, O]
    p_d_output,  # [N, O]
    p_d_weight_c,  # [C, O]
    B,
    C,
    O,
    AT_ONCE: tl.constexpr,  # images whose loads are in flight
    BLOCK_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    """d_output = g weight_c sech²(output) and d_weight_c[c] = Σ_b g tanh(output).

    A program computes BLOCK_C classes x BLOCK_O outputs over all images, so d_weight_c needs no atomics.
    """
    o_c = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    o_o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    m = (o_c < C)[:, None] & (o_o < O)[None, :]
    like: tl.constexpr = p_output.dtype.element_ty
    b_w = wide(tl.load(p_weight_c + o_c[:, None] * O + o_o[None, :], mask=m, other=0))
    b_d_w = wide_zeros(p_output.dtype.element_ty, [BLOCK_C, BLOCK_O])
    for i in range(0, B, AT_ONCE):
        for i_b in tl.static_range(AT_ONCE):
            o_r, here = (i + i_b) * C + o_c, m & (i + i_b < B)
            b_g = wide(tl.load(p_grad + o_r, mask=(o_c < C) & (i + i_b < B), other=0))[:, None]
            b_o = wide(tl.load(p_output + o_r[:, None] * O + o_o[None, :], mask=here, other=0))
            tl.store(p_d_output + o_r[:, None] * O + o_o[None, :], b_g * b_w * sech_squared(b_o, like), mask=here)
            b_d_w += b_g * tanh(b_o, like)
    tl.store(p_d_weight_c + o_c[:, None] * O + o_o[None, :], b_d_w, mask=m)


def forward(
    h_T: Tensor,
    h0: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weight_o: Tensor,
    bias_o: Tensor | None,
    weight_c: Tensor,
    bias_c: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """logits [B, C] and, if ``save``, o before its tanh [N, O] and F·W_bᵀ [B·L, O] (else of shape [0])."""
    (images, classes, dim), outputs = h_T.shape, weight_o.shape[0]
    on_features = nothing = h_T.new_empty(0)
    count = whole = images * classes
    products, parts, split = GatedProducts(h_T, count), nothing, 0
    if attention is not None and features is not None and low_rank_output(h0, features):
        output = linear(h_T.reshape(-1, dim), weight_o[:, :dim], bias_o)
        on_features = linear(features.reshape(-1, dim), weight_o[:, dim:])
        by_image = on_features.view(images, features.shape[1], outputs)
        product(output.view(images, classes, outputs), attention.to(h_T.dtype), by_image, add=True)
    elif shared := products.plan(OUTPUT, weight_o):
        output, split = h_T.new_empty(count, outputs), shared.split if shared.split > 1 else 0
        whole = products.whole_rows(OUTPUT, weight_o) if split else count
        parts = h_T.new_empty(split, count, outputs, dtype=torch.float32) if split else output
        states = [one.contiguous().view(-1, dim) for one in (h_T, h0)]
        products.run(OUTPUT, states[0], weight_o, parts, rest=states[1], g=output, bias=bias_o)
    else:
        output = linear(torch.cat([h_T, h0], dim=-1).view(-1, 2 * dim), weight_o, bias_o)
    logits, tile = h_T.new_empty(images, classes), tiles("classify", h_T)
    run(
        classify_kernel,
        (cdiv(count, tile["BLOCK_R"]),),
        p_output=output,
        p_parts=parts,
        p_weight_c=weight_c.contiguous(),
        p_bias_c=output if bias_c is None else bias_c.contiguous(),
        p_logits=logits,
        parts=split,
        N=count,
        C=classes,
        O=outputs,
        WHOLE=whole,
        HAS_BIAS=bias_c is not None,
        SAVE=save and split > 0,
        **tile,
    )
    if not save:
        return logits, nothing, nothing.clone()
    return logits, output.view(-1, outputs), on_features


def backward(
    grad: Tensor,  # [B, C]
    h_T: Tensor,
    h0: Tensor,
    attention: Tensor | None,
    features: Tensor | None,
    weight_o: Tensor,
    weight_c: Tensor,
    saved: Sequence[Tensor],
    need_features: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h_T, h0, attention, features (shape [0] if not requested) and of the weights, in this order."""
    (images, classes, dim), outputs = h_T.shape, weight_o.shape[0]
    output, on_features = saved
    first, second, nothing = units(weight_o, dim, 0, 1), units(weight_o, dim, 1, 2), h_T.new_empty(0)
    d_output, d_weight_c = torch.empty_like(output), weight_c.new_empty(weight_c.shape)
    tile = tiles("classify_backward", h_T)
    run(
        classify_backward_kernel,
        (cdiv(classes, tile["BLOCK_C"]), cdiv(outputs, tile["BLOCK_O"])),
        p_grad=grad.contiguous(),
        p_output=output,
        p_weight_c=weight_c.contiguous(),
        p_d_output=d_output,
        p_d_weight_c=d_weight_c,
        B=images,
        C=classes,
        O=outputs,
        **tile,
    )
    d_h_T, d_weight_o = h_T.new_empty(h_T.shape), weight_o.new_empty(weight_o.shape)
    product(d_h_T.view(-1, dim), d_output, first)
    product(units(d_weight_o, dim, 0, 1), d_output.T, h_T.reshape(-1, dim))
    d_weights = (d_weight_o, d_output.sum(0), d_weight_c, grad.sum(0))
    d_second = units(d_weight_o, dim, 1, 2)
    low = low_rank_output(h0, features)
    if not low:
        d_h0 = h0.new_empty(h0.shape)
        product(d_second, d_output.T, h0.reshape(-1, dim))
        product(d_h0.view(-1, dim), d_output, second)
    if attention is None or features is None:
        return d_h_T, d_h0, nothing, nothing.clone(), *d_weights
    d_attention = h_T.new_empty(attention.shape)
    d_features = features.new_empty(features.shape) if need_features else None
    if low:
        by_image, locations = d_output.view(images, classes, outputs), features.shape[1]
        d_on = h_T.new_empty(images * locations, outputs)
        product(d_on.view(images, locations, outputs), attention.to(h_T.dtype).transpose(1, 2), by_image)
        product(d_attention, by_image, on_features.view(images, locations, outputs).transpose(1, 2))
        product(d_second, d_on.T, features.reshape(-1, dim))
        if d_features is not None:
            product(d_features.view(-1, dim), d_on, second)
    else:
        low_rank.factor_gradients(d_h0, attention, features, d_attention, d_features)
    given = nothing.clone() if d_features is None else d_features
    return d_h_T, nothing, d_attention.to(attention.dtype), given, *d_weights
