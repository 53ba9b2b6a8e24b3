"""A small kernel to launch by benchmarks/harness/stub_driver.py, whose launches the tests can carry out on a CPU."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

from benchmarks.harness import stub_driver
from ssgrl_fast.kernels import launch, replay


@triton.jit
def scale_kernel(p_x, p_out, N, stride, FACTOR: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(p_out + o, tl.load(p_x + o * stride, mask=o < N) * FACTOR, mask=o < N)


def scale(x: Tensor, out: Tensor, factor: int = 2, **other: Any) -> None:
    """Launch the kernel on vectors."""
    size = {"N": len(out), "stride": x.stride(0), "FACTOR": factor, "BLOCK": 128}
    launch.run(scale_kernel, (-(-len(out) // 128),), p_x=x, p_out=out, **size, **other)


class Computed(list[Any]):
    """Takes launches of the kernel and computes them, in float32, at the addresses that it is given."""

    def append(self, started: Any) -> None:
        _, _, (x, out, count, stride, factor, _) = started
        values = [_memory(x, (count - 1) * stride + 1)[i * stride] * factor for i in range(count)]
        _memory(out, count)[:] = values
        super().append(started)


def _memory(pointer: Any, count: int) -> Any:
    return (ctypes.c_float * count).from_address(address(pointer))


def address(pointer: Any) -> int:
    """Of a launch's argument: a tensor, or an address."""
    return pointer.data_ptr() if isinstance(pointer, torch.Tensor) else pointer


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What a stubbed driver compiled and launched is remembered by one test alone."""
    before = dict(launch._known)
    launch._known.clear()
    yield
    modules = [module for name, module in sys.modules.items() if name.startswith("ssgrl_fast.kernels.")]
    kernels = [one for module in modules for one in vars(module).values() if isinstance(one, JITFunction)]
    with stub_driver.active():  # a compiled kernel asks for the driver when it goes
        launch._known.clear()
        replay.forget()
        for kernel in [scale_kernel, *kernels]:
            kernel.device_caches.clear()
        gc.collect()
    launch._known.update(before)
