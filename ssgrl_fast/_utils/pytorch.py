"""State of autocast and of export, read in a way that torch.compile can trace."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_KINDS = tuple(kind for kind in ("cpu", "cuda", "mps", "xpu", "mtia") if torch.amp.is_autocast_available(kind))


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    kind = tensor.device.type
    return kind in _KINDS and torch.is_autocast_enabled(kind)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context manager that switches autocast off for the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False) if autocasts(tensor) else nullcontext()


def check_device(operation: str, device: str) -> torch.device:
    """A device that this machine has.

    Raises:
        ValueError: no name of a device, or one that is not there; the message says what is.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{operation}: device must be cpu, cuda or cuda:0, cuda:1, ..., got {device!r}") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        count = torch.cuda.device_count()
        raise ValueError(
            f"{operation}: device {device!r} is not there: this torch (built {built}) finds {count} GPUs; "
            f"{'the first is cuda:0' if count else 'use cpu'}"
        )
    return found


def is_exporting() -> bool:
    """Whether ``torch.export`` is tracing the running code.

    ``torch.compiler.is_exporting()`` does not serve: in torch 2.11 it is also true where ``torch.compile`` traces. The
    flag behind it is not.
    """
    exporting: bool = torch.compiler._is_exporting_flag
    return exporting
