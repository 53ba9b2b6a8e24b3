"""The package ``benchmarks``, which is installed as ``ssgrl_fast/benchmarks`` and lies beside the package in a source
tree. Its modules import each other as ``benchmarks.…`` in both places."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType


def load(name: str) -> ModuleType:
    """The module ``benchmarks.<name>`` of this installation, whatever else is called benchmarks on the import path.

    Raises:
        ImportError: it lacks a package; the message names the extra.
        FileNotFoundError: an installation without the folder.
    """
    package = Path(__file__).resolve().parents[1]
    place = next((folder for folder in (package, package.parent) if (folder / "benchmarks" / "harness").is_dir()), None)
    if place is None:
        raise FileNotFoundError(f"no folder benchmarks in {package} nor beside it: install the package again")
    known = sys.modules.get("benchmarks")
    if known is None or str(place / "benchmarks") not in map(str, known.__path__):
        spec = PathFinder.find_spec("benchmarks", [str(place)])
        assert spec is not None and spec.loader is not None  # the folder is there
        sys.modules["benchmarks"] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
    try:
        return importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(f"benchmarks.{name} needs {error.name}: pip install 'ssgrl_fast[bench]'") from error
