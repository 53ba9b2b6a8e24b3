"""The ``triton`` backend: the kernels of kernels/, compiled by Triton when they are first run on a GPU.

They are operators of the namespace ``ssgrl_fast_triton`` with the schemas of the compiled library's
(csrc/schemas.cpp), so
that compile, export and autograd see them as they see those. Under ``TRITON_INTERPRET=1`` (Triton's own switch, read
when triton is imported) they run, slowly, on CPU tensors.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from ssgrl_fast.backends import torch_operators
from ssgrl_fast.backends.base import Backend, missing_gpu

NAMESPACE = "ssgrl_fast_triton"
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_INTERPRETER_DTYPES = (torch.float64, torch.float32, torch.float16)  # its bfloat16 products are wrong
_LEAST = (8, 0)  # the compute capability from which Triton multiplies bfloat16

_library = torch.library.Library(NAMESPACE, "DEF")  # the operators live as long as this object

# Importing ssgrl_fast does not import triton; its own switch is read as it reads it.
_MISSING = None if find_spec("triton") else "triton is not installed: pip install triton"
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _refuses(stem: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if _MISSING is not None:
        return _MISSING
    where, dtypes = ("cpu", _INTERPRETER_DTYPES) if _INTERPRETED else ("cuda", _DTYPES)
    if device.type != where:
        interpreter = " in Triton's interpreter (TRITON_INTERPRET=1)" if _INTERPRETED else ""
        return f"it runs on {where} tensors{interpreter}, not on {device.type}"
    if dtype not in dtypes:
        names = [str(d).removeprefix("torch.") for d in (*dtypes, dtype)]
        return f"it computes in {', '.join(names[:-2])} and {names[-2]}, not in {names[-1]}"
    return None if _INTERPRETED else missing_gpu(_LEAST, device) or _missing_compiler()


@functools.cache
def _missing_compiler() -> str | None:
    """Why Triton cannot build what starts its kernels: it looks for $CC, gcc and clang, in that order, when it runs."""
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return None
    return "Triton needs a C compiler and finds none: install gcc or clang, or set CC to one"


def define(name: str, shapes: Callable[..., Any]) -> None:
    """Declare an operator, with the signature and the shape function of ``shapes``, and give it its launcher."""
    _library.define(name + torch.library.infer_schema(shapes, mutates_args=()))
    for key in ("CUDA", "CPU"):
        _library.impl(name, _launcher(name), key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", shapes, lib=_library)


def _launcher(name: str) -> Callable[..., Any]:
    def launch(*arguments: Any) -> Any:
        return _function(name)(*arguments)

    return launch


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    stem, direction = name.removesuffix("_backward"), "backward" if name.endswith("_backward") else "forward"
    function = getattr(importlib.import_module(f"ssgrl_fast.kernels.{stem}"), direction)
    replayed: Callable[..., Any] = importlib.import_module("ssgrl_fast.kernels.replay").replayed(name, function)
    return replayed


BACKEND = Backend(name="triton", refuses=_refuses, operations=torch_operators.operations(NAMESPACE))
