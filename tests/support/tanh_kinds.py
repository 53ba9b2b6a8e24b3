"""Kinds of u and v for tests of tanh by polynomials: products inside the range of those, outside and across it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from shapes import Inputs


def scaled(u: float, v: float) -> Callable[[Inputs], Inputs]:
    """Inputs whose u and v are clipped to three and multiplied."""

    def change(inputs: Inputs) -> Inputs:
        factors = {"u": u, "v": v}
        return inputs | {k: (inputs[k].double().clamp(-3, 3) * f).to(inputs[k].dtype) for k, f in factors.items()}

    return change


def one_wide_channel(inputs: Inputs) -> Inputs:
    """|u v| = 30 at one channel, all others in range."""
    small, at = scaled(0.3, 0.3)(inputs), inputs["p"].shape[0] * 2 // 3
    small["u"][..., at], small["v"][..., at] = 6.0, 5.0
    return small


def uneven(inputs: Inputs) -> Inputs:
    """Channel by channel u from 2e-3 to 1e3 and v the other way round, so that each product is in range."""
    small, dtype = scaled(0.3, 0.3)(inputs), inputs["u"].dtype
    size = torch.logspace(-2.7, 3, inputs["p"].shape[0], dtype=torch.float64)
    return small | {"u": (small["u"].double() * size).to(dtype), "v": (small["v"].double() / size).to(dtype)}


KINDS: dict[str, Callable[[Inputs], Inputs]] = {
    "in_range": scaled(0.3, 0.3),
    "tiny": scaled(1e-2, 1e-2),
    "across": scaled(1.0, 0.5),
    "saturated": scaled(30.0, 10.0),
    "one_wide_channel": one_wide_channel,
    "uneven": uneven,
}
