"""Loads the compiled modules when they are first needed. Compiles nothing; where one cannot be used it says why.

``_C`` is the operator library (csrc/schemas.cpp, csrc/cpu), built on LibTorch's stable ABI; loading it registers
``torch.ops.ssgrl_fast``. ``_C_cuda`` (csrc/cuda) adds their CUDA kernels; it is optional, and needs ``_C``'s schemas
and a torch for the CUDA release that it was built with. ``_native`` (csrc/native.cpp) tells facts of the build.
"""

from __future__ import annotations

import functools
import importlib
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import torch

_BUILD = "build it with `pip install .` in the project's folder (a C++ compiler is needed)"
_CUDA_BUILD = "build it with `SSGRL_CUDA=1 pip install .` in the project's folder (nvcc is needed)"


def library() -> str | None:
    """Load the operator library if it is not loaded yet.

    Returns:
        None where ``torch.ops.ssgrl_fast`` has its operators, else the reason why it has not.
    """
    return _load("ssgrl_fast._C")[1]


def cuda_library() -> str | None:
    """Load the CUDA kernels of the operator library if they are not loaded yet.

    Returns:
        None where ``torch.ops.ssgrl_fast`` takes CUDA tensors, else the reason why it does not.
    """
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return library() or _load("ssgrl_fast._C_cuda")[1]


def native() -> tuple[ModuleType | None, str | None]:
    """Load the module of build facts if it is not loaded yet.

    Returns:
        The module ``ssgrl_fast._native`` and None, or None and the reason why it cannot be used.
    """
    return _load("ssgrl_fast._native")


@functools.cache
def _load(name: str) -> tuple[ModuleType | None, str | None]:
    # In this package's folder alone: the finder of an editable installation would offer another source tree's library.
    if PathFinder.find_spec(name, [str(Path(__file__).parents[1])]) is None:
        return None, f"{name} is not in this installation: {_CUDA_BUILD if name.endswith('_cuda') else _BUILD}"
    try:
        return importlib.import_module(name), None
    except (ImportError, OSError) as error:
        return None, f"{name} could not be loaded with torch {torch.__version__}: {error}"
