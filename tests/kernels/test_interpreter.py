"""The Triton kernels' parity without a GPU: the tests of the operations again, in processes with Triton's interpreter
on.

Triton decides when it is imported, so the interpreter needs processes of its own. Its own bfloat16 is wrong; the plugin
support/interpreter_formats.py mends it in the processes that test bfloat16.
"""

from __future__ import annotations

import pytest
from nested_tests import ALL_CASES, run_tests

pytest.importorskip("triton")

INTERPRETER = {"TRITON_INTERPRET": "1"}
SELECTED = [  # float16 in one variant a stem, and semantic_attention's in test_split_tanh.py, where it costs less
    ("functional/test_semantic_attention.py", "triton and not reduced"),
    ("functional/test_graph_propagation.py", "triton and not official and not identity_4"),
    ("functional/test_graph_propagation.py", "triton and official and not reduced and not identity_4"),
    ("functional/test_label_scores.py", "triton and not (reduced and (no_bias or factors))"),
    ("functional/test_head_chain.py", "triton"),
    ("functional/test_nonfinite.py", "triton and not off_tile and not bfloat16"),
    ("kernels/test_split_tanh.py", "test"),
    ("kernels/test_sums_in_parts.py", "test"),
    ("kernels/test_gated_product.py", "test"),
    ("kernels/test_replay_computed.py", "test"),
    ("kernels/test_pool.py", "test"),
    ("modules/test_head_running.py", "triton"),
    ("functional/test_operators.py", "triton and not gradcheck and not gradgradcheck and not third and not bfloat16"),
    ("functional/test_func_transforms.py", "triton and not inductor and not autocast and not threads"),
]
BFLOAT16 = ["kernels/test_interpreter_formats.py", "kernels/test_bfloat16.py"]
PLUGIN = ("-p", "interpreter_formats")
OPERATIONS = ("semantic_attention", "graph_propagation", "label_scores", "head_chain", "nonfinite")
SLOW = ("many_classes", "off_tile", "on_tile", "real_size", "papers_size", "reduced", "half", "missing", "bfloat16")


def test_in_the_interpreter() -> None:
    own = [f"kernels/test_{name}.py" for name in ("sums_in_parts", "gated_product", "replay_computed", "pool")]
    files = [*(f"functional/test_{name}.py" for name in OPERATIONS), *own]
    gated = "(test_gated_product and not no_bias and not few and not 0-3)"
    chosen = f"test_sums_in_parts or quick or test_pool or {gated} or (triton and not ({' or '.join(SLOW)}))"
    run_tests(files, chosen, environ=INTERPRETER)


@pytest.mark.thorough
@pytest.mark.parametrize(("file", "selected"), SELECTED)
def test_all_in_the_interpreter(file: str, selected: str) -> None:
    run_tests([file], selected, *ALL_CASES, environ=INTERPRETER)


def test_bfloat16() -> None:
    """The plugin's own tests, and one operation's parity; the others take a minute."""
    quick = "test_interpreter_formats or (label_scores and h0)"
    run_tests(BFLOAT16, quick, *PLUGIN, *ALL_CASES, environ=INTERPRETER)


@pytest.mark.thorough
def test_bfloat16_of_every_operation() -> None:
    files = [BFLOAT16[1], "kernels/test_gated_product.py", "kernels/test_sums_in_parts.py"]
    run_tests(files, "bfloat16", *PLUGIN, *ALL_CASES, environ=INTERPRETER)
