"""The console script ``ssgrl-fast``. What needs no tensors, as --help and recipes, is answered without importing torch.

``import ssgrl_fast`` imports torch and registers the operators. For light arguments an empty package stands in its
place, from which only modules that need neither are imported, and the process ends with the answer. With
``python -m ssgrl_fast`` the package is imported first and asks :func:`is_light` itself.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType

LIGHT = ("", "-h", "--help", "--version", "recipes")
LIGHT_HELP = ("train", "demo")  # import torch only for their work


def is_light(arguments: Sequence[str]) -> bool:
    """Whether the command line with these arguments needs no torch."""
    verb, *options = arguments or [""]
    return verb in LIGHT or (verb in LIGHT_HELP and options in (["-h"], ["--help"]))


def main() -> int:
    """Run the command line of this process; returns the exit status.

    Python's search for cyclic garbage is off while modules are imported, which leave none, and finds everything frozen
    at the end of the process: both searches together take up to two seconds.
    """
    gc.disable()
    if is_light(sys.argv[1:]) and "ssgrl_fast" not in sys.modules:
        spec = find_spec("ssgrl_fast")
        assert spec is not None and spec.submodule_search_locations is not None  # it is installed beside this file
        package = sys.modules["ssgrl_fast"] = ModuleType("ssgrl_fast")
        package.__path__ = list(spec.submodule_search_locations)
    from ssgrl_fast.cli import main as run

    gc.enable()
    try:
        return run()
    finally:
        gc.freeze()
