"""Builds the compiled modules; everything else about the package is in pyproject.toml.

    ssgrl_fast._C       the operators, on LibTorch's stable ABI and Python's limited API: one file for all torch >= 2.11
    ssgrl_fast._C_cuda  the same operators on CUDA, on the same interfaces; optional, and one file a CUDA major release
    ssgrl_fast._native  facts of the build, by pybind11, which has no limited-API mode: one file a Python version

The wheel carries all, so it is tagged for the Python that built it; without _native one wheel serves every Python.

Switches, read when the package is built and never when it runs:
    SSGRL_SKIP_EXT=1    compile nothing: a pure Python wheel, which runs on the reference backend
    SSGRL_ABI3=1        leave _native out, and tag the wheel for every Python from 3.11 on
    SSGRL_CUDA=auto     compile the CUDA kernels where nvcc and a torch for its release are there (1: or fail; 0: never)
    SSGRL_RELEASE=1     fail where ptxas spills registers of a CUDA kernel, or warns of anything else
    SSGRL_CUTLASS=PATH  CUTLASS's include folder, for the CUDA kernels of compute capability 9.0; else nvidia-cutlass's
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
HINT = "Set SSGRL_SKIP_EXT=1 to install without compiled kernels."


def load_build() -> ModuleType:
    """ssgrl_fast/backends/build.py as a plain file: importing the package would need torch."""
    spec = importlib.util.spec_from_file_location("ssgrl_fast_build", ROOT / "ssgrl_fast" / "backends" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = load_build()


def stop(reason: str) -> NoReturn:
    """End the build with a sentence."""
    sys.exit(f"\nssgrl_fast: {reason}\n")


def compile_flags(torch_folder: Path | None = None) -> list[str]:
    """The project's flags, with no symbols and no path of this machine left in the files."""
    maps = [f"-ffile-prefix-map={ROOT}=."] + ([f"-ffile-prefix-map={torch_folder}=torch"] if torch_folder else [])
    return [*BUILD.FLAGS, "-g0", "-fvisibility=hidden", *maps]


def link_flags() -> list[str]:
    """Leave out the symbol table where the linker knows how."""
    return ["-Wl,-s"] if sys.platform == "linux" else []


def library() -> tuple[Extension, type]:
    """ssgrl_fast._C and the command that builds it, by torch and ninja.

    Raises:
        ImportError: torch is not installed.
        ValueError: torch is too old, or there is no compiler; the message says so.
    """
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    problem = BUILD.installed_torch_problem(torch.__version__) or BUILD.missing_tool()
    if problem is not None:
        raise ValueError(problem)

    class Build(BuildExtension):
        def run(self) -> None:
            if self.editable_mode:  # objects are kept, so that a change compiles only what it touches
                self.build_temp = str(ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}")
            super().run()

    extension = CppExtension(
        "ssgrl_fast._C",
        BUILD.library_sources(),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("TORCH_TARGET_VERSION", BUILD.TORCH_TARGET)],
        extra_compile_args=compile_flags(Path(torch.__file__).parent),
        extra_link_args=link_flags(),
        py_limited_api=True,
    )
    return extension, Build


def cuda_library() -> Extension | None:
    """ssgrl_fast._C_cuda; None, with the reason printed, where SSGRL_CUDA=auto and it cannot be compiled.

    Raises:
        ValueError: SSGRL_CUDA=1 and it cannot be compiled; the message says why.
    """
    import torch
    from torch.utils import cpp_extension

    switch, toolkit = BUILD.cuda_switch(), BUILD.cuda_toolkit()
    if switch == "0":
        return None
    problem = BUILD.cuda_problem(torch.version.cuda, toolkit, BUILD.nvcc_release(toolkit) if toolkit else None)
    if problem is not None:
        if switch == "1":
            raise ValueError(f"SSGRL_CUDA=1, but {problem}")
        print(f"ssgrl_fast: without CUDA kernels: {problem}", file=sys.stderr)
        return None
    cpp_extension.CUDA_HOME = toolkit  # torch takes that of the first nvcc on PATH, which may be a wrapper elsewhere
    cutlass = BUILD.cutlass_headers()
    if cutlass is None:
        print(f"ssgrl_fast: {BUILD.WITHOUT_CUTLASS}", file=sys.stderr)
    return cpp_extension.CUDAExtension(
        "ssgrl_fast._C_cuda",
        BUILD.cuda_sources() + (BUILD.cutlass_sources() if cutlass else []),
        include_dirs=[str(ROOT / "csrc"), *([cutlass] if cutlass else [])],
        define_macros=[
            ("TORCH_TARGET_VERSION", BUILD.TORCH_TARGET),
            ("USE_CUDA", None),
            *([("SSGRL_GATED_PRODUCT", None)] if cutlass else []),
        ],
        extra_compile_args={
            "cxx": compile_flags(Path(torch.__file__).parent),
            "nvcc": [*BUILD.cuda_flags(), "-Xcompiler=-fvisibility=hidden"],
        },
        extra_link_args=link_flags(),
        py_limited_api=True,
    )


def native(*, cuda: bool) -> Extension:
    """ssgrl_fast._native, which is told the facts of the build; with ``cuda`` those of ssgrl_fast._C_cuda too.

    Raises:
        ImportError: pybind11 is not installed.
    """
    import pybind11
    import torch

    facts = {
        "VERSION": BUILD.version(),
        "FLAGS": " ".join(BUILD.FLAGS),
        "TORCH_TARGET": BUILD.TORCH_TARGET,
        "BUILD_TORCH": torch.__version__,
        "SOURCES": BUILD.source_digest(),
        **BUILD.cuda_facts(*((BUILD.cuda_toolkit(), BUILD.cutlass_headers()) if cuda else (None, None))),
    }
    return Extension(
        "ssgrl_fast._native",
        BUILD.native_sources(),
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        extra_compile_args=[*compile_flags(), *(f'-DSSGRL_{name}="{value}"' for name, value in facts.items())],
        extra_link_args=link_flags(),
        language="c++",
    )


def compiled() -> dict[str, Any]:
    """The arguments of setup() for the compiled modules.

    Metadata and sdists are made without a compiler and without torch; only the build itself ends with the reason.
    """
    try:
        extension, command = library()
        cuda = cuda_library()
        stable = [extension, *([cuda] if cuda else [])]
        if EVERY_PYTHON:
            tag = {"bdist_wheel": {"py_limited_api": BUILD.PYTHON_TAG}}
            return {"ext_modules": stable, "cmdclass": {"build_ext": command}, "options": tag}
        return {"ext_modules": [*stable, native(cuda=cuda is not None)], "cmdclass": {"build_ext": command}}
    except ImportError as error:
        needed = "torch >= 2.11" if EVERY_PYTHON else "torch >= 2.11 and pybind11 >= 3.0"
        reason = f"building the kernels needs {needed} in this environment ({error})."
    except ValueError as error:
        reason = f"{error}."
    unbuilt = [
        Extension("ssgrl_fast._C", BUILD.library_sources()),
        Extension("ssgrl_fast._native", BUILD.native_sources()),
    ]
    return {"ext_modules": unbuilt, "cmdclass": {"build_ext": refusing(f"{reason} {HINT}")}}


def refusing(reason: str) -> type:
    """A build_ext that ends with this reason when it runs."""

    class Refusing(build_ext):
        def run(self) -> None:
            stop(reason)

    return Refusing


def long_description() -> str:
    """README.md as a package index shows it: links to files of the tree lead to this version in the repository that
    pyproject.toml names (``Repository`` in project.urls); without it they become text, and pictures are left out."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    if "Repository" in urls:
        tree = f"{urls['Repository'].rstrip('/')}/{{}}/v{BUILD.version()}/"
        text = re.sub(r"(!\[[^\]]*\]\()(?!https?:)", rf"\1{tree.format('raw')}", text)
        return re.sub(r"(\]\()(?!https?:|#)", rf"\1{tree.format('blob')}", text)
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)", "", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)", r"\1", text)


def packages() -> dict[str, Any]:
    """The packages: ssgrl_fast, and the folders kernels/, benchmarks/ and configs/, which are installed inside it; and
    the module of the console script."""
    names = find_packages(include=["ssgrl_fast", "ssgrl_fast.*"])
    folders = {}
    for folder, pattern in (("kernels", "*.py"), ("benchmarks", "*.py"), ("configs", "*.yaml")):
        for path in sorted({path.parent.relative_to(ROOT) for path in (ROOT / folder).rglob(pattern)}):
            name = ".".join(("ssgrl_fast", *path.parts))
            names.append(name)
            folders[name] = path.as_posix()
    return {
        "packages": names,
        "py_modules": ["ssgrl_fast_cli"],
        "package_dir": folders,
        "package_data": {"ssgrl_fast": ["py.typed", "*.pyi"], "ssgrl_fast.configs": ["*.yaml"]},
    }


if int(setuptools.__version__.split(".")[0]) < 77:
    stop(f"setuptools >= 77 is needed, found {setuptools.__version__}: pip install -U setuptools")
try:
    SKIP, EVERY_PYTHON = BUILD.skip_extensions(), BUILD.every_python()
    BUILD.release()  # whether it has a meaning, wherever it is read later
except ValueError as error:
    stop(str(error))
described = {"long_description": long_description(), "long_description_content_type": "text/markdown"}
setup(**described, **packages(), **({} if SKIP else compiled()))
