"""The verb ``parity``: every backend of this machine against the float64 reference.

ssgrl-fast parity --device cuda --dtype bfloat16

:func:`ssgrl_fast.testing.parity` does the same for a module of your own.
"""

from __future__ import annotations

from collections.abc import Sequence

from ssgrl_fast.cli._benchmarks import load


def main(argv: Sequence[str]) -> int:
    """Run ``parity``: print the table; status 1 if an error exceeds its budget.

    Raises:
        ValueError: the device does not exist, or does not support a precision.
    """
    return int(load("parity").main(argv, prog="ssgrl-fast parity"))
