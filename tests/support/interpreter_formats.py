"""A pytest plugin (``-p interpreter_formats``) that makes Triton's interpreter compute reduced formats as a GPU does.

The interpreter of Triton 3.8 multiplies the bit patterns of bfloat16 and fp8, truncates float32 to bfloat16, and takes
tf32 products in float32. With the plugin, in processes with TRITON_INTERPRET=1:

    bfloat16, fp8   operands are decoded exactly, results rounded to nearest, ties to even; fp8 saturates
    products        exact products, sums in float32; tf32 operands keep ten bits of mantissa, the others are dropped
    inline PTX      the instructions of ``PTX``, each at the largest error that the PTX manual gives for it

and the ``triton`` backend accepts bfloat16. The tests of this file's functions are kernels/test_interpreter_formats.py.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
FP8 = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}


def decode_bfloat16(bits: Array) -> Array:
    """uint16 patterns as float32, exactly."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def encode_bfloat16(values: Array) -> Array:
    """float32 or float64 as uint16 patterns: nearest, ties to even, in one rounding; NaN stays NaN."""
    values = np.ascontiguousarray(values)
    narrow = to_odd(values) if values.dtype == np.float64 else values.astype(np.float32)
    bits = narrow.view(np.uint32).astype(np.uint64)
    rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(values), np.uint64(0x7FC0), rounded).astype(np.uint16)


def to_odd(values: Array) -> Array:
    """float64 as float32 with the last bit set where digits are lost, so that a second rounding goes the right way."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    back, bits = narrow.astype(np.float64), narrow.view(np.uint32)
    lost = (back != values) & ~np.isnan(values)
    towards_zero = np.where(lost & (np.abs(back) > np.abs(values)), bits - np.uint32(1), bits)
    return np.where(lost, towards_zero | np.uint32(1), bits).astype(np.uint32).view(np.float32)


def decode_fp8(bits: Array, name: str) -> Array:
    """uint8 patterns of "fp8e4nv" or "fp8e5" as float32, exactly."""
    return torch.from_numpy(np.array(bits, np.uint8)).view(FP8[name]).float().numpy()


def encode_fp8(values: Array, name: str) -> Array:
    """float32 as uint8 patterns: nearest, ties to even, the largest finite value beyond it; NaN stays NaN."""
    top = torch.finfo(FP8[name]).max
    return torch.from_numpy(np.array(values, np.float32)).clamp(-top, top).to(FP8[name]).view(torch.uint8).numpy()


def tf32(values: Array, rounded: bool = False) -> Array:
    """float32 with ten bits of mantissa: what a tensor core reads, or (``rounded``) what cvt.rna.tf32.f32 gives it."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    finite = np.isfinite(values) & rounded
    return ((bits + np.where(finite, np.uint32(0x1000), np.uint32(0))) & np.uint32(0xFFFFE000)).view(np.float32)


def at_most_wrong(exact: Callable[[Array], Array], error: float) -> Callable[[Array], Array]:
    """The function in float64, off by the relative error, up or down by a hash of the argument's bits."""

    def modelled(x: Array) -> Array:
        up = (np.ascontiguousarray(x, np.float32).view(np.uint32) * np.uint32(2654435761)) >> np.uint32(31)
        with np.errstate(all="ignore"):
            return (exact(x.astype(np.float64)) * (1 + np.where(up == 1, error, -error))).astype(np.float32)

    return modelled


PTX: dict[str, Callable[[Array], Array]] = {
    "tanh.approx.f32": at_most_wrong(np.tanh, 2.0**-11),
    "rcp.approx.ftz.f32": at_most_wrong(np.reciprocal, 2.0**-23),
    "rcp.approx.f32": at_most_wrong(np.reciprocal, 2.0**-23),
    "cvt.rna.tf32.f32": lambda x: tf32(x.view(np.float32), rounded=True),
}
"""Instructions of one float32 operand, with the maximum error of the PTX manual: tanh 2^-11 relative, rcp 1 ulp."""


def pytest_configure() -> None:
    """Mend the interpreter of this process."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    comparisons = {np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal}
    on_bits = {np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift}

    def reduced(one: Any) -> bool:
        return one.dtype.scalar == tl.bfloat16 or one.dtype.scalar.name in FP8

    def decoded(one: Any) -> Array:
        if one.dtype.scalar == tl.bfloat16:
            return decode_bfloat16(one.data)
        return decode_fp8(one.data, one.dtype.scalar.name) if reduced(one) else one.data

    def encoded(values: Array, dtype: Any) -> Any:
        if dtype == tl.bfloat16:
            return handle(encode_bfloat16(values), dtype)
        if dtype.name in FP8:
            narrow = to_odd(values) if values.dtype == np.float64 else values
            return handle(encode_fp8(narrow, dtype.name), dtype)
        with np.errstate(over="ignore"):
            return handle(values.astype(interpreter._get_np_dtype(dtype)), dtype)

    def cast(old: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(self: Any, source: Any, target: Any, *mode: Any) -> Any:
            if not reduced(source) and target.scalar != tl.bfloat16 and target.scalar.name not in FP8:
                return old(self, source, target, *mode)
            if mode and mode[0] == interpreter._ir.ROUNDING_MODE.RTZ:
                raise NotImplementedError("interpreter_formats rounds to nearest only")
            return encoded(decoded(source), target.scalar)

        return replaced

    def arithmetic(old: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(self: Any, *arguments: Any) -> Any:
            *operands, op = arguments
            if op in on_bits or not reduced(operands[0]):
                return old(self, *arguments)
            out = op(*(decoded(one) for one in operands))
            return handle(out, tl.int1) if op in comparisons else encoded(out, operands[0].dtype.scalar)

        return replaced

    def fma(old: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(self: Any, x: Any, y: Any, z: Any) -> Any:
            if not reduced(z):
                return old(self, x, y, z)
            wide = (decoded(one).astype(np.float64) for one in (x, y, z))
            return encoded(next(wide) * next(wide) + next(wide), z.dtype.scalar)

        return replaced

    def dot(old: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
            if d.data.dtype != np.float32:
                if reduced(a) or reduced(b):
                    raise NotImplementedError(f"a product of {a.dtype.scalar} is summed in float32, not {d.dtype}")
                return old(self, a, b, d, precision, imprecise)
            one_pass = str(precision).rpartition(".")[2].upper() == "TF32" and a.data.dtype == np.float32
            left, right = (tf32(x) if one_pass else x.astype(np.float32) for x in (decoded(a), decoded(b)))
            return handle(np.matmul(left, right) + d.data, d.dtype.scalar)

        return replaced

    def inline_asm(old: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(self: Any, text: str, constraints: Any, values: Any, types: Any, *rest: Any) -> Any:
            name, out = text.split()[0], types[0].scalar
            if name not in PTX:
                raise NotImplementedError(f"interpreter_formats models {', '.join(PTX)}, not {text!r}")
            result = handle(PTX[name](values[0].data).view(interpreter._get_np_dtype(out)), out)
            return SimpleNamespace(get_result=lambda place: (result,)[place])

        return replaced

    wrappers = {"binary_op": arithmetic, "unary_op": arithmetic, "cast_impl": cast, "create_fp_to_fp": cast}
    for name, wrapper in (wrappers | {"create_fma": fma, "create_dot": dot, "create_inline_asm": inline_asm}).items():
        setattr(builder, name, wrapper(getattr(builder, name)))

    import ssgrl_fast.backends.triton as backend

    if backend._INTERPRETED:
        backend._INTERPRETER_DTYPES = backend._DTYPES
