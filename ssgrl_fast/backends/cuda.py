"""The ``cuda`` backend: the kernels of csrc/cuda, on CUDA tensors, by the operators that csrc/ops.cpp declares.

Its kernels have passed the operations' tests in an emulator alone, and no GPU has run them yet. So it never runs unless
it is named.
"""

from __future__ import annotations

import torch

from ssgrl_fast import _extension
from ssgrl_fast.backends import operators
from ssgrl_fast.backends.base import Backend, missing_gpu

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_LEAST = (8, 0)  # the oldest compute capability that is compiled for


def _refuses(stem: str, device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cuda":
        return f"it runs on cuda tensors, not on {device_type}"
    if dtype not in _DTYPES:
        return f"it computes in float32, float64, bfloat16 and float16, not in {str(dtype).removeprefix('torch.')}"
    return missing_gpu(_LEAST) or _extension.cuda_library()


BACKEND = Backend(name="cuda", refuses=_refuses, functions=operators.functions("ssgrl_fast"))
