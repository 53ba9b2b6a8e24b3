"""The numbers of e4m3 by search: every finite code, and the nearest one."""

from __future__ import annotations

import torch
from torch import Tensor


def finite_codes() -> Tensor:
    """Every finite e4m3, by its definition: sign, 4 exponent bits with bias 7, 3 mantissa bits, all ones is NaN."""
    values = []
    for code in range(256):
        sign, exponent, mantissa = (-1.0 if code & 128 else 1.0), code >> 3 & 15, code & 7
        if exponent == 15 and mantissa == 7:
            continue
        scale = 2.0 ** max(exponent - 7, -6)
        values.append(sign * scale * ((exponent > 0) + mantissa / 8))
    return torch.tensor(values, dtype=torch.float64)


def nearest(values: Tensor) -> Tensor:
    """The nearest finite e4m3 by search, ties to the even mantissa; beyond the largest that value."""
    table = finite_codes().unique()
    mantissa = torch.where(table.abs() < 2.0**-6, table / 2.0**-9, torch.frexp(table)[0] * 16)
    even = mantissa % 2 == 0
    distance = (values[:, None] - table).abs()
    least = distance.amin(1, keepdim=True)
    preferred = (distance == least).double() * (1 + even.double())
    return table[preferred.argmax(1)]
