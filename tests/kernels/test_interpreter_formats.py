"""The plugin that computes bfloat16, tf32 and fp8 in Triton's interpreter: its conversions, and what kernels then give.

The kernels of this file run in the processes of test_interpreter.py, which load the plugin.
"""

from __future__ import annotations

import interpreter_formats as formats
import numpy as np
import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

from ssgrl_fast.backends import triton as backend
from ssgrl_fast.kernels import activations

runs_here = pytest.mark.skipif(
    not (backend._INTERPRETED and torch.bfloat16 in backend._INTERPRETER_DTYPES),
    reason="needs TRITON_INTERPRET=1 and -p interpreter_formats",
)
REDUCED = [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]


def awkward(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """All bit patterns' high halves with three tails each: halfway, just below and just above; infinities and NaN."""
    high = torch.arange(2**16, dtype=torch.int64) << 16
    bits = torch.cat([high + tail for tail in (0, 0x7FFF, 0x8000, 0x8001)])
    return (bits - (bits >= 2**31) * 2**32).to(torch.int32).view(torch.float32).to(dtype)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return bool(((left == right) & (left.signbit() == right.signbit()) | (left.isnan() & right.isnan())).all())


def test_every_bfloat16_is_decoded_exactly() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    truth = torch.from_numpy(bits.copy()).view(torch.bfloat16).float()
    assert same(torch.from_numpy(formats.decode_bfloat16(bits)), truth)


def test_float32_is_rounded_to_bfloat16_as_by_torch() -> None:
    found = torch.from_numpy(formats.encode_bfloat16(awkward().numpy())).view(torch.bfloat16)
    assert same(found.float(), awkward().bfloat16().float())


def test_float64_is_rounded_once() -> None:
    """Halfway between two bfloat16 and 2^-40 more: rounding by way of float32 would lose the 2^-40 and go down."""
    values = np.array([1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40, -1 - 2.0**-8 - 2.0**-40, 1e300])
    found = formats.decode_bfloat16(formats.encode_bfloat16(values))
    assert found.tolist() == [1.0, 1 + 2.0**-7, 1.0, -1 - 2.0**-7, float("inf")]


@pytest.mark.parametrize("name", formats.FP8)
def test_fp8_against_ml_dtypes(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    other = {"fp8e4nv": ml_dtypes.float8_e4m3fn, "fp8e5": ml_dtypes.float8_e5m2}[name]
    bits, top = np.arange(256, dtype=np.uint8), float(ml_dtypes.finfo(other).max)
    with np.errstate(invalid="ignore"):
        values = awkward().numpy()
        truth = np.clip(values, -top, top).astype(other).astype(np.float32)
        assert same(torch.from_numpy(formats.decode_fp8(bits, name)), torch.from_numpy(bits.view(other).astype("f4")))
    found = formats.decode_fp8(formats.encode_fp8(values, name), name)
    assert same(torch.from_numpy(found), torch.from_numpy(truth))


def test_tf32_keeps_ten_bits() -> None:
    tail = 2.0**-11
    x = np.array([1 + tail, 1 - tail / 4, -1 - tail, 3.0, np.inf], np.float32)
    assert formats.tf32(x).tolist() == [1.0, 1 - 2.0**-11, -1.0, 3.0, np.inf]
    assert formats.tf32(x, rounded=True).tolist() == [1 + 2 * tail, 1.0, -1 - 2 * tail, 3.0, np.inf]


def test_an_approximate_instruction_errs_by_its_bound_in_both_directions() -> None:
    x = np.linspace(0.1, 3, 4096, dtype=np.float32)
    error = formats.PTX["tanh.approx.f32"](x) / np.tanh(x.astype(np.float64)) - 1
    assert np.allclose(np.abs(error), 2.0**-11, atol=1e-7) and 0.4 < (error > 0).mean() < 0.6


@triton.jit
def convert_kernel(p_x, p_out, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_out + o, tl.load(p_x + o).to(p_out.dtype.element_ty))


@runs_here
@pytest.mark.parametrize("target", REDUCED, ids=str)
@pytest.mark.parametrize("source", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_kernels_convert_as_torch_does(source: torch.dtype, target: torch.dtype) -> None:
    x = awkward(source)
    top = torch.finfo(target).max
    there, back = torch.empty(len(x), dtype=target), torch.empty(len(x), dtype=torch.float32)
    convert_kernel[(1,)](x, there, len(x))
    convert_kernel[(1,)](there, back, len(x))
    assert same(back, (x.clamp(-top, top) if target.itemsize == 1 else x).to(target).float())


@triton.jit
def arithmetic_kernel(p_x, p_y, p_out, N: tl.constexpr):
    o = tl.arange(0, N)
    x, y = tl.load(p_x + o), tl.load(p_y + o)
    tl.store(p_out + o, x + y)
    tl.store(p_out + N + o, x * y)
    tl.store(p_out + 2 * N + o, tl.where(x < y, x, -y))
    tl.store(p_out + 3 * N + o, tl.abs(x))
    tl.store(p_out + 4 * N + o, tl.zeros([N], p_x.dtype.element_ty) + tl.max(x, 0))


@runs_here
def test_arithmetic_of_bfloat16_as_torch_does() -> None:
    x, y = torch.randn(2, 512, generator=torch.Generator().manual_seed(3)).bfloat16()
    out = torch.empty(5, 512, dtype=torch.bfloat16)
    arithmetic_kernel[(1,)](x, y, out, 512)
    truth = torch.stack([x + y, x * y, torch.where(x < y, x, -y), x.abs(), x.max().expand(512)])
    assert torch.equal(out, truth)


@triton.jit
def dot_kernel(p_a, p_b, p_out, N: tl.constexpr, PRECISION: tl.constexpr):
    o = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(p_out + o, tl.dot(tl.load(p_a + o), tl.load(p_b + o), input_precision=PRECISION))


@runs_here
@pytest.mark.parametrize("dtype", [*REDUCED, "tf32", "ieee"], ids=str)
def test_products_are_exact_and_summed_in_float32(dtype: torch.dtype | str) -> None:
    a, b = torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(4))
    precision, out = dtype if isinstance(dtype, str) else "ieee", torch.empty(32, 32)
    if isinstance(dtype, torch.dtype):
        a, b = a.to(dtype), b.to(dtype)
    dot_kernel[(1,)](a, b, out, 32, precision)
    wide = [torch.from_numpy(formats.tf32(t.numpy())) if dtype == "tf32" else t for t in (a, b)]
    truth = wide[0].double() @ wide[1].double()
    assert (out.double() - truth).norm() / truth.norm() < 2e-7


@triton.jit
def tanh_kernel(p_x, p_out, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_out + o, activations.tanh(tl.load(p_x + o), tl.bfloat16))


@runs_here
def test_kernels_meet_the_approximate_tanh() -> None:
    x, out = torch.linspace(0.1, 3, 512), torch.empty(512)
    tanh_kernel[(1,)](x, out, 512)
    assert torch.equal(out, torch.from_numpy(formats.PTX["tanh.approx.f32"](x.numpy())))
