"""The verb ``bench``: the benchmarks, ``python -m benchmarks.run`` in a source tree."""

from __future__ import annotations

from collections.abc import Sequence

from ssgrl_fast.cli._benchmarks import load


def main(argv: Sequence[str]) -> int:
    """Run the benchmarks with the arguments after ``bench``.

    Raises:
        ImportError: the extra "bench" is not installed.
        ValueError: see ``benchmarks.run.main``.
    """
    return int(load("run").main(argv) or 0)
