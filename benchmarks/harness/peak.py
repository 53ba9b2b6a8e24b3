"""The result types of memory measurements, and helpers common to the CPU (memory.py) and the GPU (gpu.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "failed to allocate")


@dataclass(frozen=True)
class Peak:
    """Bytes beyond those in use before the step, without gradients."""

    resident: int
    allocator: int | None = None

    @property
    def extra(self) -> int:
        return max(self.resident, self.allocator or 0)


@dataclass(frozen=True)
class Measured:
    """The result of a measurement: a peak, or the reason for none ("out of memory", "unavailable", "failed")."""

    peak: Peak | None
    status: str = "ok"
    reason: str = ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that an allocation failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def held_bytes(tensors: Sequence[Tensor]) -> dict[int, int]:
    """Bytes that tensors use of each storage, by its address; views of one storage share it."""
    held: dict[int, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        own = tensor.numel() * tensor.element_size()
        held[storage.data_ptr()] = min(storage.nbytes(), held.get(storage.data_ptr(), 0) + own)
    return held
