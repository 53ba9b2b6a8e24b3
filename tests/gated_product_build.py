"""Compiles the products of csrc/cuda for tests, with nvcc and CUTLASS where both are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ssgrl_fast import _build

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"
FLAGS = ("-gencode", "arch=compute_90a,code=sm_90a", "-std=c++17", "-DNDEBUG", "--expt-relaxed-constexpr")


def cutlass_headers() -> Path:
    """The folder of CUTLASS's headers. Skips where they are not installed."""
    found = _build.cutlass_headers()
    if found is None:
        pytest.skip("CUTLASS is not installed: pip install nvidia-cutlass, or set SSGRL_CUTLASS to its include folder")
    return Path(found)


def nvcc(*arguments: str) -> str:
    """What nvcc, asked for the resources of every kernel, prints."""
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc is not installed")
    headers = str(cutlass_headers())
    command = [compiler, *FLAGS, "-Xptxas", "-v", "-I", headers, "-I", str(CUDA), *arguments]
    return subprocess.run(command, check=True, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True).stdout


def kernels_of(name: str, folder: Path, product: str = "gated") -> tuple[Path, str]:
    """The object of the kernels of bf16, fp16 or fp8, and what ptxas says of them; takes minutes."""
    target = folder / f"{product}_{name}.o"
    return target, nvcc("-O3", "-c", str(CUDA / f"{product}_product_{name}.cu"), "-o", str(target))
