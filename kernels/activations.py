"""Device functions of all kernels: activation functions with accurate slopes, and conversion to the type of arithmetic.

Values are converted as soon as they are loaded (:func:`wide`): arithmetic is in float32, or in float64 for float64.
``LIKE`` is the dtype that a result is stored in: for bfloat16 and float16 reciprocals have an error of one unit of
float32, and for bfloat16 tanh is one instruction, as is σ in the forward.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether the kernels run in Triton's interpreter on CPU tensors (TRITON_INTERPRET=1 when triton was imported)."""


@triton.jit
def wide(x):
    """x in float32; float64 stays float64."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def wide_zeros(like, shape: tl.constexpr):
    """Zeros of a shape in the dtype that :func:`wide` gives for the dtype ``like``."""
    return tl.zeros(shape, dtype=tl.float64 if like == tl.float64 else tl.float32)


@triton.jit
def _inverse(x, LIKE: tl.constexpr):
    """1 / x for 1 ≤ x ≤ 2."""
    if LIKE.primitive_bitwidth > 16 or INTERPRETED:
        inverse = 1 / x
    else:
        inverse = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return inverse


@triton.jit
def tanh(x, LIKE: tl.constexpr = tl.float32):
    """tanh of a tensor in float32 or float64, accurate to a few units in the last place from the smallest x to
    saturation; in bfloat16 to 2^-11.

    float32: below 0.6, where (1 - q) / (1 + q) with q = e^(-2|x|) cancels, an odd polynomial (relative error 1e-8).
    float64: -expm1(-2|x|) computed with the logarithm (Kahan's method), as accurate as the exponential.
    """
    if LIKE.is_bf16():
        t = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        a = tl.abs(x)
        q = tl.exp(-2 * a)
        if x.dtype == tl.float64:
            lost = tl.where(q == 1, -2 * a, (q - 1) * (-2 * a) / tl.where(q == 1, 1.0, tl.log(q)))
            t = tl.where(a > 1, 1 - q, -lost) / (1 + q)
        else:
            y = a * a
            s = 2.1116211842070017e-2 + y * -6.276384979574403e-3
            s = 0.13332924000741928 + y * (-5.38751376220477e-2 + y * s)
            t = tl.where(a < 0.6, a + a * y * (-0.33333330431190494 + y * s), (1 - q) * _inverse(1 + q, LIKE))
        t = tl.where(x < 0, -t, t)
    return t


@triton.jit
def sech_squared(x, LIKE: tl.constexpr = tl.float32):
    """The derivative of tanh, 4q / (1 + q)² with q = e^(-2|x|): accurate relative to its value until q underflows."""
    q = tl.exp(-2 * tl.abs(x))
    inverse = _inverse(1 + q, LIKE)
    return 4 * q * inverse * inverse


@triton.jit
def sigmoid_both(x, LIKE: tl.constexpr = tl.float32, SHORT: tl.constexpr = False):
    """σ(x) and σ(-x) = 1 - σ(x), each accurate relative to its value; their product is the slope of σ. ``SHORT``: in
    bfloat16 by one instruction, to 2^-12 of 1, where neither is needed relative to itself."""
    if SHORT and LIKE.is_bf16():
        t = 0.5 * tanh(0.5 * x, LIKE)
        return 0.5 + t, 0.5 - t
    q = tl.exp(-tl.abs(x))
    large = _inverse(1 + q, LIKE)
    small = q * large
    return tl.where(x < 0, small, large), tl.where(x < 0, large, small)
