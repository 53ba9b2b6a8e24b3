"""The verb ``test``: Lightning evaluates a checkpoint on the test images and writes a report."""

from __future__ import annotations

from collections.abc import Sequence

from ssgrl_fast.cli.fit import run_verb


def main(argv: Sequence[str]) -> int:
    """Run ``test`` with the arguments after the verb; see :func:`ssgrl_fast.cli.fit.run_verb`."""
    return run_verb("test", argv)
