"""The Triton kernels' parity without a GPU: the tests of the operations again, in processes with Triton's interpreter
on.

Triton decides when it is imported, so the interpreter needs processes of its own. Every test here is one file of tests,
those of backend triton alone; the interpreter has no bfloat16, which a GPU tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
SELECTED = {  # float16 in one variant a stem, and semantic_attention's in test_split_tanh.py, where it costs less
    "functional/test_semantic_attention.py": "triton and not reduced",
    "functional/test_graph_propagation.py": "triton and not (reduced and official) and not identity_4",
    "functional/test_label_scores.py": "triton and not (reduced and (no_bias or factors))",
    "functional/test_head_chain.py": "triton",
    "functional/test_nonfinite.py": "triton and not off_tile and not bfloat16",
    "kernels/test_split_tanh.py": "test",
    "modules/test_head_running.py": "triton",
    "functional/test_operators.py": "triton and not gradcheck and not gradgradcheck and not third and not bfloat16",
    "functional/test_func_transforms.py": "triton and not inductor and not autocast and not threads",
}


@pytest.mark.parametrize("file", SELECTED)
def test_in_the_interpreter(file: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, f"tests/{file}", "-k", SELECTED[file]],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout
