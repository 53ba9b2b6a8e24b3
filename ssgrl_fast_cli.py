"""The console script ``ssgrl-fast``. What needs no tensors, as --help and recipes, is answered without importing torch.

``import ssgrl_fast`` imports torch and registers the operators. For the arguments of :data:`LIGHT` an empty package
stands in its place, from which only modules that need neither are imported, and the process ends with the answer.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

LIGHT = ("", "-h", "--help", "--version", "recipes")


def main() -> int:
    """Run the command line of this process; returns the exit status."""
    if next(iter(sys.argv[1:]), "") in LIGHT and "ssgrl_fast" not in sys.modules:
        spec = find_spec("ssgrl_fast")
        assert spec is not None and spec.submodule_search_locations is not None  # it is installed beside this file
        package = sys.modules["ssgrl_fast"] = ModuleType("ssgrl_fast")
        package.__path__ = list(spec.submodule_search_locations)
    from ssgrl_fast.cli import main as run

    return run()
