"""The CPU's large float32 products by either library: which one computes them, and the parity of both."""

from __future__ import annotations

import os
import subprocess
import sys

import operations
import pytest
import torch
from operations import OUTPUTS, PROPAGATION_VARIANTS, Comparison, Variant, assert_within_budget, compare
from shapes import Shape, low_rank_pays

LIBRARIES = ["blas", "onednn"]
# Rows, columns and the sums over them are past the bounds of csrc/cpu/products.h.
SHAPES = {
    False: Shape("large_full_rank", 2, 30, 24, 512, 512, 1024, T=2),
    True: Shape("large_low_rank", 8, 9, 24, 512, 512, 1024, T=2),
}


def _infer(stem: str, shape: Shape, variant: Variant) -> Comparison:
    """Without gradients other products run: with whole matrices, where some columns of them would do."""
    expected = operations.expected_results(stem, shape, torch.float32, variant, 0, None)
    with torch.no_grad():
        found = operations.fused(stem, variant, shape.T, "cpu")(expected.inputs)
    results = dict(zip(OUTPUTS[stem], found, strict=True))
    return Comparison(
        results, {name: expected.truth[name] for name in results}, {name: expected.plain[name] for name in results}
    )


def _run(library: str, **more: str) -> str:
    """This file's checks in a process whose products are of that library."""
    path = os.pathsep.join(filter(None, sys.path))
    here = os.environ | {"SSGRL_CPU_PRODUCTS": library, "OMP_NUM_THREADS": "1", "PYTHONPATH": path} | more
    done = subprocess.run([sys.executable, __file__], env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
@pytest.mark.parametrize("stem", ["graph_propagation", "label_scores"])
def test_parity_by_the_library_of_this_processor(stem: str, shape: Shape) -> None:
    operations.skip_unless_it_runs("cpu", torch.float32)
    variant = Variant(factors=True)
    assert_within_budget(
        stem, torch.float32, [compare(stem, shape, torch.float32, "cpu", variant), _infer(stem, shape, variant)]
    )


@pytest.mark.thorough
@pytest.mark.parametrize("library", LIBRARIES)
def test_parity_of_large_products(library: str) -> None:
    operations.skip_unless_it_runs("cpu", torch.float32)
    said = _run(library, ONEDNN_VERBOSE="1")
    assert said.count("within budget") == len(SHAPES) * (len(PROPAGATION_VARIANTS) + 2)
    if torch.backends.mkldnn.is_available():
        products = [line for line in said.splitlines() if line.startswith("onednn_verbose") and ",exec," in line]
        assert bool(products) == (library == "onednn")


def test_another_library_is_refused() -> None:
    native = pytest.importorskip("ssgrl_fast._native", reason="the library is not compiled")
    assert native.product_library() in ("oneDNN", "PyTorch's BLAS")
    code = "import ssgrl_fast._native as native; native.product_library()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"SSGRL_CPU_PRODUCTS": "mkl"}, capture_output=True, text=True
    )
    assert done.returncode != 0 and "SSGRL_CPU_PRODUCTS must be blas or onednn, got mkl" in done.stderr


def _check() -> None:
    for pays, shape in SHAPES.items():
        assert low_rank_pays(shape) == pays
        cases = [("graph_propagation", variant) for variant in PROPAGATION_VARIANTS]
        cases += [("label_scores", Variant(factors)) for factors in (False, True)]
        for stem, variant in cases:
            both = [compare(stem, shape, torch.float32, "cpu", variant), _infer(stem, shape, variant)]
            assert_within_budget(stem, torch.float32, both)
            print("within budget", stem, shape, variant)


if __name__ == "__main__":
    _check()
