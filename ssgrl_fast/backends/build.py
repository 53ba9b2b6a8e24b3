"""What is compiled, how, and what that needs: the one place that setup.py, the build backend and ``env`` read.

Uses the standard library alone and is also run as a plain file, before torch or this package can be imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

TORCH_MINIMUM = (2, 11)
TORCH_TARGET = "0x020b000000000000"  # TORCH_TARGET_VERSION: the stable ABI of torch 2.11, which every later torch keeps
# Neither -ffast-math nor -fassociative-math: the compiler keeps sums in the order in which they are written.
FLAGS = ("-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-std=c++17")
CUDA_FLAGS = ("-O3", "-std=c++17", "-DNDEBUG", "--expt-relaxed-constexpr", "-Xptxas=-v")
# Either option alone lets a spill pass: by itself ptxas does not warn of one, and by itself a warning is no error.
RELEASE_CUDA_FLAGS = ("-Xptxas=--warn-on-spills,--warning-as-error",)
# sm_80 and sm_90a have kernels of their own, sm_100 runs the former's, and every later GPU compiles its PTX.
CUDA_TARGETS = (
    "arch=compute_80,code=sm_80",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_100,code=[sm_100,compute_100]",
)
REQUIREMENTS = ("torch>=2.11", "ninja", "pybind11>=3.0")
CUTLASS_REQUIREMENT = "nvidia-cutlass>=4.2"
WITHOUT_CUTLASS = (
    "built without CUTLASS, and so without the products for compute capability 9.0 that apply gates, classifiers and "
    "fp8: pip install nvidia-cutlass, and build again"
)
PYTHON_TAG = "cp311"  # of a wheel for all Pythons: the oldest that pyproject.toml takes
ROOT = Path(__file__).resolve().parents[2]
_CUTLASS = "csrc/cuda/sm90/"  # the folder of all that needs CUTLASS


def version() -> str:
    """The project's version, from ssgrl_fast/_version.py."""
    text = (ROOT / "ssgrl_fast" / "_version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise ValueError('ssgrl_fast/_version.py has no line __version__ = "..."')
    return match.group(1)


def library_sources() -> list[str]:
    """The sources of ``ssgrl_fast._C``, relative to the project's folder."""
    kernels = sorted(f"csrc/cpu/{path.name}" for path in (ROOT / "csrc" / "cpu").glob("*.cpp"))
    return ["csrc/module.cpp", "csrc/schemas.cpp", *kernels]


def cuda_sources() -> list[str]:
    """The sources of ``ssgrl_fast._C_cuda`` that need no CUTLASS, relative to the project's folder."""
    plain = [name for name in _kernels() if not name.startswith(_CUTLASS)]
    return ["csrc/module.cpp", "csrc/cuda/register.cpp", *plain]


def cutlass_sources() -> list[str]:
    """The sources of ``ssgrl_fast._C_cuda`` that need CUTLASS's headers, relative to the project's folder."""
    return [name for name in _kernels() if name.startswith(_CUTLASS)]


def _kernels() -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc" / "cuda").rglob("*.cu"))


def cutlass_headers(environ: Mapping[str, str] | None = None) -> str | None:
    """The folder of CUTLASS's headers: $SSGRL_CUTLASS, or those of the package nvidia-cutlass; None without either.

    Raises:
        ValueError: SSGRL_CUTLASS names a folder without cutlass/cutlass.h.
    """
    named = (os.environ if environ is None else environ).get("SSGRL_CUTLASS")
    if named:
        if not (Path(named) / "cutlass" / "cutlass.h").is_file():
            raise ValueError(f"SSGRL_CUTLASS must be CUTLASS's include folder, got {named!r} without cutlass/cutlass.h")
        return named
    found = importlib.util.find_spec("cutlass_library")
    places = list(found.submodule_search_locations or []) if found else []
    folders = [Path(place) / "source" / "include" for place in places]
    return next((str(folder) for folder in folders if (folder / "cutlass" / "cutlass.h").is_file()), None)


def cutlass_version(headers: str) -> str:
    """The version that CUTLASS's headers name, such as "4.2.0".

    Raises:
        ValueError: their cutlass/version.h names none.
    """
    path = Path(headers) / "cutlass" / "version.h"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = [re.search(rf"#define CUTLASS_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    if not all(found):
        raise ValueError(f"{path}: does not name CUTLASS_MAJOR, CUTLASS_MINOR and CUTLASS_PATCH")
    return ".".join(match[1] for match in found if match)


def native_sources() -> list[str]:
    """The sources of ``ssgrl_fast._native``, relative to the project's folder."""
    return ["csrc/native.cpp"]


def source_digest() -> str | None:
    """A digest of every file of csrc/ and of the flags; None where there is no csrc/, as in an installed wheel."""
    folder = ROOT / "csrc"
    if not folder.is_dir():
        return None
    digest = hashlib.sha256(" ".join((*FLAGS, TORCH_TARGET, *CUDA_FLAGS, *CUDA_TARGETS)).encode())
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".cpp", ".h", ".cu", ".cuh")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def skip_extensions(environ: Mapping[str, str] | None = None) -> bool:
    """Whether SSGRL_SKIP_EXT=1 asks for a build without compiled modules.

    Raises:
        ValueError: SSGRL_SKIP_EXT or SSGRL_CUDA has a value that means nothing, or they contradict each other.
    """
    environ = os.environ if environ is None else environ
    skip = _asked("SSGRL_SKIP_EXT", environ)
    if skip and cuda_switch(environ) == "1":
        raise ValueError("SSGRL_CUDA=1 asks for the CUDA kernels and SSGRL_SKIP_EXT=1 for none")
    return skip


def every_python(environ: Mapping[str, str] | None = None) -> bool:
    """Whether SSGRL_ABI3=1 asks for a wheel that serves every Python from 3.11 on: one without ``_native``.

    Raises:
        ValueError: SSGRL_ABI3 has a value that means nothing.
    """
    return _asked("SSGRL_ABI3", os.environ if environ is None else environ)


def release(environ: Mapping[str, str] | None = None) -> bool:
    """Whether SSGRL_RELEASE=1 asks for a build that fails where ptxas spills a CUDA kernel's registers.

    Raises:
        ValueError: SSGRL_RELEASE has a value that means nothing.
    """
    return _asked("SSGRL_RELEASE", os.environ if environ is None else environ)


def cuda_flags(environ: Mapping[str, str] | None = None) -> list[str]:
    """What nvcc is told for every file, targets included; with SSGRL_RELEASE=1 that spills are errors, too.

    Raises:
        ValueError: as :func:`release`.
    """
    strict = RELEASE_CUDA_FLAGS if release(environ) else ()
    return [*CUDA_FLAGS, *strict, *(f"-gencode={target}" for target in CUDA_TARGETS)]


def _asked(switch: str, environ: Mapping[str, str]) -> bool:
    value = environ.get(switch, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{switch} must be 0 or 1, got {value!r}")
    return value == "1"


def cuda_switch(environ: Mapping[str, str] | None = None) -> str:
    """SSGRL_CUDA: "1" to build the CUDA kernels or fail, "0" to leave them out, "auto" where it can be done.

    Raises:
        ValueError: it has another value.
    """
    value = (os.environ if environ is None else environ).get("SSGRL_CUDA", "auto")
    if value not in ("auto", "0", "1"):
        raise ValueError(f"SSGRL_CUDA must be auto, 0 or 1, got {value!r}")
    return value


def cuda_toolkit(environ: Mapping[str, str] | None = None) -> str | None:
    """The folder of a CUDA toolkit with nvcc, headers and libcudart: $CUDA_HOME, nvcc's own, or /usr/local/cuda."""
    environ = os.environ if environ is None else environ
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    named = [environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    beside = [str(Path(nvcc).resolve().parent.parent)] if nvcc else []
    for folder in map(Path, named or [*beside, "/usr/local/cuda"]):
        runtimes = [*folder.glob("lib64/libcudart.so*"), *folder.glob("lib/libcudart.so*")]
        if (folder / "bin" / "nvcc").is_file() and (folder / "include" / "cuda_runtime.h").is_file() and runtimes:
            return str(folder)
    return None


def cuda_problem(torch_cuda: str | None, toolkit: str | None, release: str | None) -> str | None:
    """Why the CUDA kernels cannot be compiled, in a sentence; None where they can.

    Args:
        torch_cuda: ``torch.version.cuda``.
        toolkit: what :func:`cuda_toolkit` found.
        release: the release that its nvcc names, such as "13.0".
    """
    if torch_cuda is None:
        return "this torch is built without CUDA"
    if toolkit is None:
        return "no CUDA toolkit with nvcc, headers and libcudart is to be found (set CUDA_HOME)"
    if release is None or release.split(".")[0] != torch_cuda.split(".")[0]:
        return f"the toolkit in {toolkit} is of CUDA {release or 'an unknown release'}, torch is built for {torch_cuda}"
    return None


def nvcc_release(toolkit: str) -> str | None:
    """The release that a toolkit's nvcc names; None where it does not run."""
    try:
        command = [str(Path(toolkit) / "bin" / "nvcc"), "--version"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"release (\d+\.\d+)", text)
    return match[1] if match else None


def cuda_facts(toolkit: str | None, cutlass: str | None) -> dict[str, str]:
    """What ``_native`` is told of ``_C_cuda``; an empty text for what is not built.

    Args:
        toolkit: the folder that it is compiled with, or None where it is not.
        cutlass: the headers that the gated products are compiled with, or None where they are not.

    Raises:
        ValueError: CUTLASS's headers name no version.
    """
    targets = re.findall(r"(?:sm|compute)_\w+", " ".join(target.split("code=")[1] for target in CUDA_TARGETS))
    return {
        "NVCC": (nvcc_release(toolkit) or "") if toolkit else "",
        "CUDA_TARGETS": ", ".join(targets) if toolkit else "",
        "CUTLASS": cutlass_version(cutlass) if cutlass else "",
    }


def requirements(environ: Mapping[str, str] | None = None) -> list[str]:
    """What a build needs beside setuptools: torch only where something is compiled, pybind11 only for ``_native``, and
    CUTLASS's headers where there is a CUDA toolkit and SSGRL_CUTLASS names none.

    Raises:
        ValueError: a switch has a value without a meaning.
    """
    if skip_extensions(environ):
        return []
    needed = [name for name in REQUIREMENTS if not (every_python(environ) and name.startswith("pybind11"))]
    named = (os.environ if environ is None else environ).get("SSGRL_CUTLASS")
    cuda = cuda_switch(environ) != "0" and cuda_toolkit(environ) is not None
    return [*needed, CUTLASS_REQUIREMENT] if cuda and not named else needed


def missing_tool() -> str | None:
    """Why nothing can be compiled here, in a sentence; None where a compiler and Python's headers are there."""
    if sys.platform == "win32":
        return "the CPU kernels are written for GCC and Clang and are not built on Windows"
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    if not compiler or shutil.which(compiler[0]) is None:
        named = " ".join(compiler) or "c++"
        return f"no C++ compiler: {named!r} is not to be found (install g++ or clang++, or set CXX)"
    include = sysconfig.get_path("include")
    if not os.path.isfile(os.path.join(include, "Python.h")):
        return f"no Python headers: {include} holds no Python.h (install python3-dev or its like)"
    return None


def installed_torch_problem(installed: str) -> str | None:
    """Why a torch of this version cannot build the library; None where it can."""
    match = re.match(r"(\d+)\.(\d+)", installed)
    if match is not None and (int(match[1]), int(match[2])) >= TORCH_MINIMUM:
        return None
    return f"torch >= {'.'.join(map(str, TORCH_MINIMUM))} is needed, found {installed}"
