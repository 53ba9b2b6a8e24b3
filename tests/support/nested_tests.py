"""Runs tests again in a pytest process of its own, where a backend that is otherwise not there stands in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALL_CASES = ("-m", "not long")
"""The option of pytest that takes the thorough cases too."""


def run_tests(
    files: Sequence[str], selected: str, *options: str, environ: Mapping[str, str] | None = None, timeout: int = 1800
) -> None:
    """The tests of these files, relative to tests/, whose names match the expression all pass, and there are some."""
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    path = [str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]  # plugins of -p, and what was there
    done = subprocess.run(
        [*command, *options, *(f"tests/{file}" for file in files), "-k", selected],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)} | dict(environ or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout
