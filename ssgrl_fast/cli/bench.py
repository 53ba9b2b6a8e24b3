"""The verb ``bench``: the benchmarks of the source tree, ``python -m benchmarks.run``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec


def main(argv: Sequence[str]) -> int:
    """Run the benchmarks with the arguments after ``bench``.

    Raises:
        FileNotFoundError: the folder benchmarks/ of the source tree is not on the import path.
        ValueError: see ``benchmarks.run.main``.
    """
    if find_spec("benchmarks") is None or find_spec("benchmarks.run") is None:
        raise FileNotFoundError("bench needs the source tree: run `python -m benchmarks.run` in the project's folder")
    return int(importlib.import_module("benchmarks.run").main(argv) or 0)
