"""The CUDA backend's parity without a GPU: the tests of the operations again, in processes where its kernels run in the
emulator (tests/support/cuda_emulator) on CPU tensors.

The operators register themselves when their library is loaded, so each run has a process of its own. In the thorough
test every kernel runs at least once in each dtype; the long test runs all.
"""

from __future__ import annotations

import os
import shutil

import pytest
from nested_tests import ALL_CASES, run_tests

OPERATIONS = [f"functional/test_{stem}.py" for stem in ("semantic_attention", "graph_propagation", "label_scores")]
FP8 = "functional/test_graph_propagation_fp8.py"
SMALL = "tiny or odd or few_locations or saturated or one_location or empty_batch"
REDUCED = "semantic or (h0-paper and not official) or (factors and not no_bias)"
EVERY_KERNEL = f"cuda and test_parity and ((not layout and ({SMALL})) or (reduced and ({REDUCED})))"
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")


@needs_compiler
def test_in_the_emulator() -> None:
    large = "many_classes or on_tile or off_tile or many_locations or real_size or layout or reduced or bfloat16"
    run_tests([*OPERATIONS, FP8], f"cuda and (fp8 or test_parity) and not ({large})", "--emulated-cuda")


@needs_compiler
@pytest.mark.thorough
def test_every_kernel_in_the_emulator() -> None:
    run_tests(OPERATIONS, EVERY_KERNEL, "--emulated-cuda", *ALL_CASES)


@needs_compiler
@pytest.mark.thorough
def test_e4m3_in_the_emulator() -> None:
    run_tests([FP8], "cuda", "--emulated-cuda", *ALL_CASES)


@needs_compiler
@pytest.mark.long
@pytest.mark.parametrize(
    "file", [*OPERATIONS, *(f"functional/test_{name}.py" for name in ("head_chain", "nonfinite", "operators"))]
)
def test_all_in_the_emulator(file: str) -> None:
    run_tests([file], "cuda and not gradgradcheck and not third", "--emulated-cuda", *ALL_CASES, timeout=3000)
