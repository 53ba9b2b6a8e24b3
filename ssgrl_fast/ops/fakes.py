"""Shape functions for the compiled operators, registered where the compiled library is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssgrl_fast import _extension


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the fake of ``ssgrl_fast::name``; without the library nothing is
    registered."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if _extension.library() is None:
            torch.library.register_fake(f"ssgrl_fast::{name}", function)
        return function

    return decorate


def low_rank_pays(h0: Tensor, features: Tensor) -> bool:
    """Whether the first step is cheaper on the L rows of the features: L < C·D / (C + D) (identity 4)."""
    classes, dim, locations = h0.shape[1], h0.shape[2], features.shape[1]
    return locations * (classes + dim) < classes * dim
