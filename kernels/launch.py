"""How kernels are started: on the tensors' own device, nothing for an empty grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Start a kernel on the current device; a grid without programs starts nothing."""
    if all(grid):
        kernel[grid](**arguments)


def dot_precision(tensor: Tensor) -> str:
    """Triton's name of the precision of float32 products: PyTorch's own setting; of no meaning to other dtypes."""
    if tensor.dtype == torch.float32 and tensor.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"
