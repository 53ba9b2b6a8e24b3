"""Numbers in e4m3, the eight-bit float of 4 exponent and 3 mantissa bits, and their scales.

Every scale is a power of two, so scaling rounds nothing: what is lost is the rounding to e4m3 alone. A bound that is
too wide costs nothing but the far end of the range, as e4m3 is a float: values down to 2⁻¹⁴ of the bound keep their
3 bits and lose 2⁻⁴ of themselves at most, smaller ones 2⁻¹⁸ of the bound.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["E4M3", "Fp8Gates", "by_row", "check_channels", "exponent_from", "power_of_two", "state_scale", "to_e4m3"]

E4M3 = torch.float8_e4m3fn
_LARGEST = 448.0
_HEADROOM = 8
"""A scaled value is at most 2^8: below e4m3's largest by more than the bounds' own rounding."""
_LEAST = -100
"""The exponent of the smallest scale of a weight row: a product of scales is then no subnormal float."""


class Fp8Gates(NamedTuple):
    """The gates of :func:`ssgrl_fast.functional.graph_propagation_fp8`, quantized for one graph.

    Row n of a weight holds [W[n, block] · f_block] / scale[n], where f is 1 for the columns of h and r⊙h, ``inward``
    for those of A·h and ``outward`` for those of Aᵀ·h: the columns of X are stored divided by the same factors.
    """

    weight_zr: Tensor  # [2D, 3D] e4m3
    scale_zr: Tensor  # [2D] float32, powers of two
    bias_zr: Tensor | None  # [2D] bfloat16
    weight_h: Tensor  # [D, 3D] e4m3
    scale_h: Tensor  # [D] float32, powers of two
    bias_h: Tensor | None  # [D] bfloat16
    inward: float  # the power of two from max_c Σ_c' |A_cc'| on
    outward: float  # the same of Aᵀ


def check_channels(operation: str, dim: int) -> None:
    """Check that states of D channels can be multiplied in e4m3, which is done in units of 16 bytes.

    Raises:
        ValueError: D is no multiple of 16 from 16 on.
    """
    if dim < 16 or dim % 16:
        raise ValueError(f"{operation}: e4m3 products need D to be a multiple of 16, got D = {dim}")


def state_scale(h0: Tensor) -> Tensor:
    """[B, 1, 1] float32: the power of two that each image's states are divided by; NaN where h0 [B, C, D] is not
    finite."""
    bound = h0.abs().amax(dim=(1, 2), keepdim=True).float().clamp(min=1)
    return torch.where(torch.isfinite(bound), power_of_two(exponent_from(bound) - _HEADROOM), torch.nan)


def to_e4m3(values: Tensor) -> Tensor:
    """The nearest e4m3, ties to even; beyond ±448 that value; NaN stays NaN."""
    return values.clamp(-_LARGEST, _LARGEST).to(E4M3)


def by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [N, M] as e4m3 with the scale [N] of its rows."""
    scale = power_of_two((exponent_from(weight.abs().amax(1)) - _HEADROOM).clamp(min=_LEAST))
    return to_e4m3(weight / scale[:, None]), scale


def exponent_from(values: Tensor) -> Tensor:
    """The least integers e with values ≤ 2^e, of positive finite float32."""
    fraction, exponent = torch.frexp(values)
    return exponent - (fraction == 0.5).int()


def power_of_two(exponent: Tensor) -> Tensor:
    """2^e in float32, exactly, for e from -126 to 127."""
    return ((exponent.int() + 127) << 23).view(torch.float32)
