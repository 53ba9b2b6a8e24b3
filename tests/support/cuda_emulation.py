"""Builds csrc/cuda as host code (tests/support/cuda_emulator) and calls it on CPU tensors."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

import torch
from compiled import ROOT, linked
from torch import Tensor

from ssgrl_fast import backends
from ssgrl_fast.backends import build as package_build
from ssgrl_fast.backends import torch_operators
from ssgrl_fast.backends.base import fp8_dtype
from ssgrl_fast.functional.fakes import FAKES

EMULATOR = ROOT / "tests" / "support" / "cuda_emulator"
FLAGS = ("-x", "c++", "-std=c++17", "-O2", "-march=native", "-fPIC", "-DSSGRL_EMULATED")
FLAGS += ("-fno-gnu-unique", "-fvisibility=hidden", "-U_FORTIFY_SOURCE")  # two builds in a process share no state
FLAGS += ("-fno-strict-aliasing",)  # as nvcc compiles
WARNINGS = ("-Wall", "-Wno-unknown-pragmas", "-Werror")
NAMESPACE = "ssgrl_fast_emulated"
OPERATORS = (  # the operators, with the CUDA kernels in the emulator, as operators of CPU tensors
    f"-DSSGRL_LIBRARY={NAMESPACE}",
    f"-DTORCH_TARGET_VERSION={package_build.TORCH_TARGET}",
    "-DSSGRL_GATED_PRODUCT",
    "-Wno-attributes",
)


def build(*sources: Path) -> ctypes.CDLL:
    """The library of these sources; each is compiled once for each state of it. Skips where there is no compiler.

    Raises:
        RuntimeError: the compiler refuses; its output is the message.
    """
    return ctypes.CDLL(str(_library(sources)))


def become_backend() -> None:
    """From here on the backend "cuda" is its kernels in the emulator, on CPU tensors."""
    products = (f"tests/support/cuda_emulator/{name}_product.cpp" for name in ("gated", "classifier"))
    names = ("csrc/schemas.cpp", *products, *package_build.cuda_sources())
    sources = tuple(ROOT / name for name in names if name != "csrc/module.cpp")
    torch.ops.load_library(str(_library(sources, OPERATORS)))
    for name, fake in FAKES.items():
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    backends._BACKENDS["cuda"] = backends.Backend("cuda", _refuses, torch_operators.operations(NAMESPACE, fp8=True))


def _refuses(stem: str, device: torch.device, dtype: torch.dtype) -> str | None:
    return fp8_dtype(stem, dtype) if device.type == "cpu" else f"the emulator runs on cpu tensors, not on {device.type}"


def _library(sources: tuple[Path, ...], options: tuple[str, ...] = ()) -> Path:
    torch_folder = Path(torch.__file__).parent
    headers = [f"-I{EMULATOR}", f"-I{ROOT / 'csrc'}", f"-isystem{torch_folder / 'include'}"]
    libraries = ["-shared", f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-lc10"]
    return linked(sources, [*FLAGS, *WARNINGS, *options, *headers], libraries)


class _Guarded:
    """A copy of a tensor with memory behind its last element that no one may touch."""

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.is_contiguous()
        self.tensor, page = tensor, mmap.PAGESIZE
        end = -(-tensor.nbytes // page) * page
        self.memory = mmap.mmap(-1, end + page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        refused = ctypes.CDLL(None).mprotect(ctypes.c_void_p(base + end), ctypes.c_size_t(page), 0)
        assert not refused, "mprotect"
        self.address = base + end - tensor.nbytes
        ctypes.memmove(self.address, tensor.data_ptr(), tensor.nbytes)

    def copy_back(self) -> None:
        ctypes.memmove(self.tensor.data_ptr(), self.address, self.tensor.nbytes)


def call(library: ctypes.CDLL, name: str, *arguments: Tensor | int | float | None, backwards: bool = False) -> None:
    """An extern "C" function of tests/support/cuda_emulator/bindings.h: tensors go by address, integers as int64.

    Each tensor is a copy while the kernels run, with nothing behind it, and takes what they have written.

    Raises:
        RuntimeError: the emulator refuses what the kernel does; the message says what.
    """
    function = getattr(library, name)
    function.restype = ctypes.c_char_p
    guarded = [_Guarded(value) if isinstance(value, Tensor) else value for value in arguments]
    message = function(ctypes.c_bool(backwards), *map(_argument, guarded))
    if message is not None:
        raise RuntimeError(message.decode())
    for value in guarded:
        if isinstance(value, _Guarded):
            value.copy_back()


def _argument(value: _Guarded | int | float | None) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, _Guarded):
        return ctypes.c_void_p(value.address)
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)
