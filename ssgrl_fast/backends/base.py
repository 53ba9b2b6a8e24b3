"""What a backend is: a name, a reason for each thing it cannot run, and the operations that it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

STEMS = ("semantic_attention", "graph_propagation", "label_scores")
INFERENCE_STEMS = ("graph_propagation_fp8",)
"""Operations without a backward, which a backend may lack."""


class BackendUnavailable(RuntimeError):
    """A backend that was named cannot run these inputs; the message gives its reason."""


Outputs = tuple[tuple[Tensor, ...], Sequence[Tensor]]  # an operation's results, and what its backward wants back
Gradients = tuple[Any, ...]  # one for each tensor of a call's flat()


class Implementation(NamedTuple):
    """One operation's functions; they know nothing of autograd and get checked inputs.

    ``forward(call, save) -> outputs, saved``: call is the operation's (:mod:`ssgrl_fast.backends.calls`); with save
    saved is whatever the same backend's backward wants back.
    ``backward(call, grads, saved, need_features) -> gradients``: grads has one gradient for each output, None where
    there is none; gradients has one for each tensor of ``call.flat()``, in that order. Anything may stand there for a
    tensor that takes no gradient: h0 beside its factors, or features without need_features.
    """

    forward: Callable[..., Outputs]
    backward: Callable[..., Gradients] | None = None  # None: the operation only infers


@dataclass(frozen=True)
class Backend:
    """One way to compute the operations.

    ``refuses(stem, device, dtype)`` gives None where this backend can run, otherwise the reason why not.
    ``operations`` holds the functions of each operation by its stem.
    ``remark(stem, device)`` says what else ``explain()`` should tell; empty where there is nothing.
    """

    name: str
    refuses: Callable[[str, torch.device, torch.dtype], str | None]
    operations: Mapping[str, Implementation]
    remark: Callable[[str, torch.device], str] = lambda stem, device: ""

    def refusal(self, stem: str, device: str | torch.device, dtype: torch.dtype) -> str | None:
        """Why this backend does not run an operation on a device in a dtype; None where it does."""
        if stem not in self.operations:
            return f"it has no {stem}"
        return self.refuses(stem, torch.device(device), dtype)


def missing_gpu(least: tuple[int, int], device: torch.device) -> str | None:
    """Why kernels of this compute capability and newer do not run on a GPU; None where they do."""
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < least:
        return f"its kernels need compute capability {least[0]}.{least[1]} or newer, this GPU has {major}.{minor}"
    return None


def fp8_dtype(stem: str, dtype: torch.dtype) -> str | None:
    """Why graph_propagation_fp8 does not take states of this dtype; None for bfloat16, and for other operations."""
    if stem not in INFERENCE_STEMS or dtype == torch.bfloat16:
        return None
    return f"{stem} keeps its states in bfloat16, not in {str(dtype).removeprefix('torch.')}"
