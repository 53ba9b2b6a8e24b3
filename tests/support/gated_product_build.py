"""Compiles the products of csrc/cuda for tests, with nvcc and CUTLASS where both are installed, and reads what that
gives: descriptors of the copy engine and machine code."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import re
import shutil
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from compiled import ROOT, linked

from ssgrl_fast.backends import build

CSRC = ROOT / "csrc"
SM90 = CSRC / "cuda" / "sm90"
NATIVE = ROOT / "tests" / "support" / "native"
FLAGS = ("-gencode", "arch=compute_90a,code=sm_90a", "-std=c++17", "-DNDEBUG", "--expt-relaxed-constexpr")
SHARED_BYTES = 227 * 1024
"""What a block of compute capability 9.0 may ask for (CUDA C++ Programming Guide)."""


PROVEN = SM90 / "proven.txt"
"""A line for each source of kernels: the digest at which its machine code was last found to be what it should be."""


def digest(source: Path) -> str:
    """Of a source of kernels, of all that it includes from csrc/, and of the flags."""
    files, todo = dict[Path, bytes](), [source]
    while todo:
        path = todo.pop()
        if path not in files:
            files[path] = path.read_bytes()
            for name in re.findall(r'^#include "([^"]+)"', files[path].decode(), re.MULTILINE):
                todo.append(next(place / name for place in (path.parent, CSRC) if (place / name).is_file()))
    text = b"".join(path.relative_to(CSRC).as_posix().encode() + files[path] for path in sorted(files))
    return hashlib.sha256(" ".join(FLAGS).encode() + text).hexdigest()


def by_source(product: str, *kernels: tuple[str, int]) -> pytest.MarkDecorator:
    """Parameters of a test of machine code, the type's name and the number of kernels: long, and thorough where the
    source, or what it includes, is not what the last proof was of."""
    proven = dict(line.split()[:2] for line in PROVEN.read_text().splitlines())
    known = {name: proven.get(f"{product}_product_{name}") for name, _ in kernels}
    same = {name: digest(SM90 / f"{product}_product_{name}.cu") == known[name] for name, _ in kernels}
    marks = {True: pytest.mark.long, False: pytest.mark.thorough}
    return pytest.mark.parametrize(("name", "count"), [pytest.param(*k, marks=marks[same[k[0]]]) for k in kernels])


def say_proven(product: str, name: str) -> None:
    """After a proof, warn where the line of its source in PROVEN is an older one's."""
    source = SM90 / f"{product}_product_{name}.cu"
    if f"{source.stem} {digest(source)}" not in PROVEN.read_text():
        warnings.warn(f"write into {PROVEN}: {source.stem} {digest(source)}", stacklevel=2)


def host_library(product: str) -> ctypes.CDLL:
    """tests/support/native/<product>_product_host.cpp as a library, by the host's compiler alone."""
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-I", str(CSRC)]
    return ctypes.CDLL(str(linked([NATIVE / f"{product}_product_host.cpp"], flags, ["-shared"])))


def call(function: object, *arrays: np.ndarray, batch: int | None = None) -> np.ndarray:
    """A function of that library over arrays of float32, which must have one length."""
    out = np.empty_like(arrays[0])
    assert all(a.dtype == np.float32 and a.shape == out.shape and a.flags.c_contiguous for a in arrays)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, out)]
    extra = [] if batch is None else [ctypes.c_int(batch)]
    function(ctypes.c_int64(out.size), *pointers[:-1], *extra, pointers[-1])  # type: ignore[operator]
    return out


def cutlass_headers() -> Path:
    """The folder of CUTLASS's headers. Skips where they are not installed."""
    found = build.cutlass_headers()
    if found is None:
        pytest.skip("CUTLASS is not installed: pip install nvidia-cutlass, or set SSGRL_CUTLASS to its include folder")
    return Path(found)


def nvcc(*arguments: str) -> str:
    """What nvcc, asked for the resources of every kernel, prints."""
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("nvcc is not installed")
    headers = str(cutlass_headers())
    command = [compiler, *FLAGS, "-Xptxas", "-v", "-I", headers, "-I", str(CSRC), *arguments]
    return subprocess.run(command, check=True, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True).stdout


def kernels_of(name: str, folder: Path, product: str = "gated") -> tuple[Path, str]:
    """The object of the kernels of bf16, fp16 or fp8, and what ptxas says of them; takes minutes."""
    target = folder / f"{product}_{name}.o"
    return target, nvcc("-O3", "-c", str(SM90 / f"{product}_product_{name}.cu"), "-o", str(target))


def arguments_of(product: str, folder: Path) -> Path:
    """The program of tests/support/native/<product>_product_arguments.cu; takes a minute or more."""
    source, program = NATIVE / f"{product}_product_arguments.cu", folder / "arguments"
    defined = "-DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL"  # by the program itself
    nvcc("-O1", defined, "-I", str(NATIVE), str(source), "-o", str(program))
    return program


@dataclass
class Descriptor:
    """A tensor as the copy engine sees it: extents and box innermost first, strides in bytes without the innermost."""

    address: int
    extents: list[int]
    strides: list[int]
    box: list[int]

    @classmethod
    def of(cls, line: str) -> Descriptor:
        """From a line of tests/support/native/product_arguments.h."""
        parts = re.sub(r"map (\d+)", r"\1 |", line).split("|")
        address, *numbers = ([int(number) for number in part.split()] for part in parts)
        return cls(address[0], *numbers)


def cuobjdump() -> str:
    """The disassembler: of a CUDA toolkit, or the one that Triton carries."""
    found = shutil.which("cuobjdump")
    if found is None:
        triton = importlib.util.find_spec("triton")
        carried = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
        if carried is None or not carried.is_file():
            pytest.skip("cuobjdump is not installed")
        found = str(carried)
    return found


def without_spills(printed: str) -> int:
    """How many kernels ptxas tells of, none of which spills or has a stack."""
    stack = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", printed)
    assert set(stack) <= {("0", "0", "0")}, stack
    return len(stack)


def functions_of(program: str, binary: Path) -> list[tuple[str, str]]:
    """Symbol and machine code of each kernel, by cuobjdump."""
    code = subprocess.run([program, "-sass", str(binary)], check=True, capture_output=True, text=True).stdout
    return [(part.splitlines()[0], part) for part in re.split(r"^\s*Function : ", code, flags=re.MULTILINE)[1:]]
