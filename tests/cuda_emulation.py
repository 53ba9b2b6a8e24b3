"""Builds csrc/cuda as host code (tests/cuda_emulator) and calls it on CPU tensors."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
EMULATOR = ROOT / "tests" / "cuda_emulator"
FLAGS = ("-x", "c++", "-std=c++17", "-O2", "-march=native", "-fPIC", "-shared", "-DSSGRL_EMULATED")
FLAGS += ("-fno-gnu-unique", "-fvisibility=hidden", "-U_FORTIFY_SOURCE")  # two builds in a process share no state
WARNINGS = ("-Wall", "-Wno-unknown-pragmas", "-Werror")


def build(*sources: Path) -> ctypes.CDLL:
    """The library of these sources, compiled once for each state of the sources; skips where there is no compiler.

    Raises:
        RuntimeError: the compiler refuses; its output is the message.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("the emulator needs a C++ compiler")
    folder = Path(tempfile.gettempdir()) / f"ssgrl_fast_emulated_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    library = folder / f"{_digest(sources)}.so"
    if not library.exists():
        includes = [f"-I{EMULATOR}", f"-I{ROOT / 'csrc'}", *(f"-isystem{p}" for p in cpp_extension.include_paths())]
        partial = folder / f"{library.stem}.{os.getpid()}"
        objects = [(str(source), f"{partial}.{i}.o") for i, source in enumerate(sources)]
        for source, target in objects:
            _run([compiler, *(f for f in FLAGS if f != "-shared"), *WARNINGS, *includes, "-c", source, "-o", target])
        _run([compiler, "-shared", *(target for _, target in objects), "-o", str(partial)])
        for _, target in objects:
            Path(target).unlink()
        partial.rename(library)
    return ctypes.CDLL(str(library))


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")


def _digest(sources: tuple[Path, ...]) -> str:
    state = hashlib.sha256(repr((FLAGS, [str(s) for s in sources], torch.__version__)).encode())
    folders = (EMULATOR, ROOT / "csrc" / "cuda", ROOT / "csrc" / "operators")
    for path in sorted({*sources, *(p for folder in folders for p in folder.glob("*") if p.is_file())}):
        state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()[:24]


def call(library: ctypes.CDLL, name: str, *arguments: Tensor | int | float | None, backwards: bool = False) -> None:
    """An extern "C" function of tests/cuda_emulator/bindings.h: tensors go by address, integers as int64.

    Raises:
        RuntimeError: the emulator refuses what the kernel does; the message says what.
    """
    function = getattr(library, name)
    function.restype = ctypes.c_char_p
    message = function(ctypes.c_bool(backwards), *map(_argument, arguments))
    if message is not None:
        raise RuntimeError(message.decode())


def _argument(value: Tensor | int | float | None) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)
