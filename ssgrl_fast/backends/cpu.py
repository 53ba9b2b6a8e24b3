"""The ``cpu`` backend: the compiled kernels of csrc/cpu, reached through the operators of csrc/schemas.cpp."""

from __future__ import annotations

import torch

from ssgrl_fast.backends import extension, torch_operators
from ssgrl_fast.backends.base import Backend

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_MISSING = extension.library()


def _refuses(stem: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if _MISSING is not None:
        return _MISSING
    if device.type != "cpu":
        return f"it runs on cpu tensors, not on {device.type}"
    if dtype not in _DTYPES:
        return f"it computes in float32, float64 and bfloat16, not in {str(dtype).removeprefix('torch.')}"
    return None


BACKEND = Backend(name="cpu", refuses=_refuses, operations=torch_operators.operations("ssgrl_fast"))
