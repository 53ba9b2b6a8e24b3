"""Shape functions of the operators: those of the compiled library, where it is there, and the Triton kernels'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssgrl_fast.backends import extension, triton
from ssgrl_fast.kernels.low_rank import pays


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as the shape function of the operator ``name`` in every namespace.

    The compiled library declares its operators itself; the Triton kernels' are declared here, with this signature.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        register_library_fake(name, function)
        triton.define(name, function)
        return function

    return decorate


def register_library_fake(name: str, function: Callable[..., Any]) -> None:
    """Register the shape function of an operator of the compiled library, where there is one."""
    if extension.library() is None:
        torch.library.register_fake(f"ssgrl_fast::{name}", function)


def low_rank_pays(h0: Tensor, features: Tensor) -> bool:
    """Whether the first step is cheaper on the L rows of the features (identity 4)."""
    cheaper: bool = pays(h0.shape[1], features.shape[1], h0.shape[2])
    return cheaper
