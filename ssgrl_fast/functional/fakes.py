"""Shape functions ("fakes") of the operators: the compiled library's, where there is one, and the Triton kernels'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ssgrl_fast.backends import extension, triton

Fake = Callable[..., Any]
FAKES: dict[str, Fake] = {}
"""The shape functions by the operator's name; another library with the same schemas takes them from here."""


def register_fake(name: str) -> Callable[[Fake], Fake]:
    """Register the decorated function as the shape function of the operator ``name`` in every namespace.

    The compiled library declares its operators itself; the Triton kernels' are declared here, with this signature.
    """

    def decorate(function: Fake) -> Fake:
        triton.define(name, function)
        return register_library_fake(name)(function)

    return decorate


def register_library_fake(name: str) -> Callable[[Fake], Fake]:
    """Register the decorated function as the shape function of an operator that Triton has no kernels for."""

    def decorate(function: Fake) -> Fake:
        FAKES[name] = function
        if extension.library() is None:
            torch.library.register_fake(f"ssgrl_fast::{name}", function)
        return function

    return decorate
