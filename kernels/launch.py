"""How kernels are started: arguments by name, nothing for an empty grid, or only recorded, to be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Launch:
    """One start of a kernel that was recorded instead."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


_recorder: list[Launch] | None = None


def run(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Start a kernel on the current device; a grid without programs starts nothing."""
    if not all(grid):
        return
    if _recorder is not None:
        _recorder.append(Launch(kernel, grid, arguments))
        return
    kernel[grid](**arguments)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within the block kernels are not started and their outputs stay unwritten; the list takes what would have run.

    Not for use beside other threads that run kernels.
    """
    global _recorder
    before, _recorder = _recorder, []
    try:
        yield _recorder
    finally:
        _recorder = before


def dot_precision(tensor: Tensor) -> str:
    """Triton's name of the precision of float32 products: PyTorch's own setting; of no meaning to other dtypes."""
    if tensor.dtype == torch.float32 and tensor.is_cuda and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"
