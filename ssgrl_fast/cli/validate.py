"""The verb ``validate``: Lightning evaluates a checkpoint on the validation images (see :mod:`ssgrl_fast.cli.fit`)."""

from __future__ import annotations

from collections.abc import Sequence

from ssgrl_fast.cli.fit import run_verb


def main(argv: Sequence[str]) -> int:
    """Run ``validate`` with the arguments after the verb; see :func:`ssgrl_fast.cli.fit.run_verb`."""
    return run_verb("validate", argv)
