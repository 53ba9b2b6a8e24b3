"""The ``cuda`` backend: the kernels of csrc/cuda, on CUDA tensors, by the operators that csrc/schemas.cpp declares.

Its kernels have passed the operations' tests in an emulator alone, and no GPU has run them yet. So it never runs unless
it is named.
"""

from __future__ import annotations

import torch

from ssgrl_fast.backends import extension, torch_operators
from ssgrl_fast.backends.base import INFERENCE_STEMS, Backend, fp8_dtype, missing_gpu

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_LEAST = (8, 0)  # the oldest compute capability that is compiled for


def _refuses(stem: str, device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cuda":
        return f"it runs on cuda tensors, not on {device_type}"
    if dtype not in _DTYPES:
        return f"it computes in float32, float64, bfloat16 and float16, not in {str(dtype).removeprefix('torch.')}"
    fp8 = stem in INFERENCE_STEMS
    missing = fp8_dtype(stem, dtype) or missing_gpu(_LEAST) or extension.cuda_library()
    return missing or (_missing_products() if fp8 else None)


def _missing_products() -> str | None:
    """Why products in e4m3 do not run on the current GPU, where the other kernels do."""
    if torch.cuda.get_device_capability() != (9, 0):
        major, minor = torch.cuda.get_device_capability()
        return f"its e4m3 products need compute capability 9.0, this GPU has {major}.{minor}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("ssgrl_fast::graph_propagation_fp8", "CUDA"):
        return "it was built without CUTLASS, and so without e4m3 products: pip install nvidia-cutlass, and build again"
    return None


BACKEND = Backend(name="cuda", refuses=_refuses, operations=torch_operators.operations("ssgrl_fast", fp8=True))
