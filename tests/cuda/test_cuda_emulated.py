"""The CUDA backend's parity without a GPU: the tests of the operations again, in processes where its kernels run in the
emulator (tests/support/cuda_emulator) on CPU tensors.

The operators register themselves when their library is loaded, so each run has a process of its own. In the ordinary
test every kernel runs at least once in each dtype; the long test runs all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEMS = ("semantic_attention", "graph_propagation", "label_scores")
OPERATIONS = [f"tests/functional/test_{stem}.py" for stem in STEMS]
SMALL = "tiny or odd or few_locations or saturated or one_location or empty_batch"
REDUCED = "semantic or (h0-paper and not official) or (factors and not no_bias)"
QUICK = f"cuda and test_parity and ((not layout and ({SMALL})) or (reduced and ({REDUCED})))"
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")


def run(files: list[str], selected: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "--emulated-cuda", *files, "-k", selected],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout


@needs_compiler
def test_in_the_emulator() -> None:
    run(OPERATIONS, QUICK)


@needs_compiler
def test_e4m3_in_the_emulator() -> None:
    run(["tests/functional/test_graph_propagation_fp8.py"], "cuda")


@needs_compiler
@pytest.mark.long
@pytest.mark.parametrize(
    "file", [*OPERATIONS, *(f"tests/functional/test_{name}.py" for name in ("head_chain", "nonfinite", "operators"))]
)
def test_all_in_the_emulator(file: str) -> None:
    run([file], "cuda and not gradgradcheck and not third")
