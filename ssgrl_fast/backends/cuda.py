"""The ``cuda`` backend: the kernels of csrc/cuda, on CUDA tensors, by the operators that csrc/schemas.cpp declares.

Its kernels have passed the operations' tests in an emulator alone, and no GPU has run them yet. So it runs where it is
named, and where a verdict of the machine's owner (verdicts.py) found it right and faster.
"""

from __future__ import annotations

import torch

from ssgrl_fast.backends import extension, torch_operators, verdicts
from ssgrl_fast.backends.base import INFERENCE_STEMS, Backend, fp8_dtype, missing_gpu
from ssgrl_fast.backends.build import WITHOUT_CUTLASS

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_LEAST = (8, 0)  # the oldest compute capability that is compiled for


def _refuses(stem: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it runs on cuda tensors, not on {device.type}"
    if dtype not in _DTYPES:
        return f"it computes in float32, float64, bfloat16 and float16, not in {str(dtype).removeprefix('torch.')}"
    fp8 = stem in INFERENCE_STEMS
    missing = fp8_dtype(stem, dtype) or missing_gpu(_LEAST, device) or extension.cuda_library()
    return missing or (_missing_products(device) if fp8 else None)


def _missing_products(device: torch.device) -> str | None:
    """Why products in e4m3 do not run on a GPU, where the other kernels do."""
    if (capability := torch.cuda.get_device_capability(device)) != (9, 0):
        major, minor = capability
        return f"its e4m3 products need compute capability 9.0, this GPU has {major}.{minor}"
    return None if _has_products() else f"it was {WITHOUT_CUTLASS}"


def _has_products() -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key("ssgrl_fast::graph_propagation_fp8", "CUDA")


def _remark(stem: str, device: torch.device) -> str:
    """What its build lacks, and what its verdicts say."""
    if device.type != "cuda" or extension.cuda_library() is not None:
        return ""
    lacks = stem in ("graph_propagation", "label_scores") and not _has_products()
    remarks = [WITHOUT_CUTLASS] if lacks else []
    if stem not in INFERENCE_STEMS and missing_gpu(_LEAST, device) is None:
        remarks.append(verdicts.of(stem, device)[1])
    return "; ".join(remarks)


BACKEND = Backend("cuda", _refuses, torch_operators.operations("ssgrl_fast", fp8=True), _remark)
