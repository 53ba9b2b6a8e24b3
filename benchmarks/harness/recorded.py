"""What the Triton backend starts on a GPU for one call of the head, recorded without one.

The head runs on tensors without values (device "meta") through its own modules, functions, autograd and launchers. The
launches of Triton kernels are recorded by :mod:`ssgrl_fast.kernels.launch`, PyTorch's operators by a dispatch mode, in
the order of the call. An operator that only makes a view or takes memory starts nothing; every other one is counted as
one kernel (cuBLAS may start a second one for a product whose sum it splits).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness.cases import Case
from ssgrl_fast import backends
from ssgrl_fast.backends import triton as backend
from ssgrl_fast.kernels import launch, tile_tables
from ssgrl_fast.kernels.launch import Launch
from ssgrl_fast.kernels.replay import own_memory
from ssgrl_fast.models.prepare import prepare_head
from ssgrl_fast.modules import SSGRLHead

_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "mv": (0, 1)}
"""Operators that multiply matrices, and the places of the factors among their arguments."""


@dataclass(frozen=True)
class Operator:
    """A kernel that PyTorch starts: [m, k] x [k, n], ``batch`` times, or a kernel that moves bytes (m = 0)."""

    name: str
    read: int  # bytes
    written: int
    m: int = 0
    n: int = 0
    k: int = 0
    batch: int = 1

    @property
    def flop(self) -> int:
        return 2 * self.m * self.n * self.k * self.batch


class _Recorder(TorchDispatchMode):
    """Adds PyTorch's operators to the list of recorded launches; runs the backend's operators as a GPU would."""

    def __init__(self, found: list[Launch | Operator]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func.namespace == backend.NAMESPACE:
            with self:
                return backend._launcher(func._opname)(*args, **(kwargs or {}))
        with self:  # what PyTorch composes of other operators
            composed = func.decompose(*args, **(kwargs or {}))
        if composed is not NotImplemented:
            return composed
        out = func(*args, **(kwargs or {}))
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        results = [value for value in tree_leaves(out) if isinstance(value, Tensor) and value.numel()]
        if results and _starts(func, inputs, results):
            self.found.append(_operator(func, args, inputs, results))
        return out


def _starts(func: Any, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> bool:
    return "empty" not in func._opname and (
        func._schema.is_mutable or any(own_memory(value, inputs) for value in results)
    )


def _operator(func: Any, args: Sequence[Any], inputs: Sequence[Tensor], results: Sequence[Tensor]) -> Operator:
    name = func._opname.rstrip("_")
    written = sum(_bytes(value) for value in results)
    if name not in _PRODUCTS:
        # what a copy or a fill overwrites is not read
        read = inputs[1:] if name in ("copy", "zero", "fill") else inputs
        return Operator(func._opname, sum(map(_bytes, read)), written)
    a, b = (args[place] for place in _PRODUCTS[name])
    batch = a.shape[0] if a.dim() == 3 else 1
    n = b.shape[-1] if b.dim() > 1 else 1
    return Operator(func._opname, _bytes(a) + _bytes(b), written, a.shape[-2], n, a.shape[-1], batch)


def _bytes(value: Tensor) -> int:
    """Of its elements, each once where it is expanded."""
    return prod(size for size, stride in zip(value.shape, value.stride(), strict=True) if stride) * value.itemsize


@contextmanager
def _without_a_gpu(table: str, processors: int) -> Iterator[list[Any]]:
    """Within the block the Triton backend takes tensors of every device and records its launches in the list."""
    able = replace(backend.BACKEND, refuses=lambda stem, device, dtype: None)
    with (
        patch.dict(backends._BACKENDS, triton=able),
        patch.object(launch, "multiprocessors", lambda device: processors),
        tile_tables.assumed(table),
        launch.recorded() as found,
    ):
        yield found


def head(case: Case, architecture: str, processors: int = 132) -> list[Launch | Operator]:
    """The kernels of one call of the head at a case's shape, in their order.

    Inference: the prepared head (class constants computed once) on a channels_last map. Training: forward and backward
    of the module as it is, with gradients of the map and of every weight, without an optimizer.

    Args:
        case: of the operation "head".
        architecture: "sm_90": whose tiles.
        processors: the multiprocessors of the GPU, which sums in parts are to fill.
    """
    s, train = case.shape, case.mode == "train"
    with torch.device("meta"):
        words, adjacency = torch.empty(s.classes, s.word_dim), torch.empty(s.classes, s.classes)
        module = SSGRLHead(
            s.channels,
            words,
            adjacency,
            joint_dim=s.joint_dim,
            attention_dim=s.score_dim,
            out_dim=s.out_dim,
            steps=s.steps,
            backend="triton",
        ).to(case.dtype)
        features = torch.empty(case.batch, s.channels, s.side, s.side, dtype=case.dtype)
        features = features.to(memory_format=torch.channels_last).requires_grad_(train)
        gradient = torch.empty(case.batch, s.classes, dtype=case.dtype)
        if not train:
            module = prepare_head(module)
        table = tile_tables.of_capability(*divmod(int(architecture.removeprefix("sm_")), 10))
        with _without_a_gpu(table, processors) as found, torch.set_grad_enabled(train), _Recorder(found):
            logits = module(features)
            if train:
                torch.autograd.backward(logits, gradient)
    return found
