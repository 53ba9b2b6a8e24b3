"""Drawn extents, variants, layouts and dtypes: every operation on every backend against float64, beyond the named
shapes, and the whole head against the published form.

The draws are the same in every run: 100 a test; in the long tests 2,000 for each operation and backend, 500 for each
reduced dtype beside, and 1,000 heads.

Seven seeds a draw are one pool: a single element that all but cancels has no relative error to speak of. The reduced
dtypes, whose rule is one of averages, are pooled over a hundred draws and more, of extents that are not all tiny.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operations import (
    VARIANTS,
    Comparison,
    assert_within_budget,
    backend_params,
    by_backend,
    by_each_stem,
    compare,
    skip_unless_it_runs,
)
from published_weights import published_weights
from shapes import LAYOUTS, Shape
from torch import Tensor

from ssgrl_fast import SSGRLHead, testing
from ssgrl_fast.reference.published import published_head

EXACT, REDUCED = (torch.float64, torch.float32), (torch.bfloat16, torch.float16)
SEEDS = range(7)
POOLED = 150 * len(SEEDS)  # so many comparisons and more are held together in the reduced dtypes
layouts = st.lists(st.sampled_from([None, *LAYOUTS]), min_size=1, max_size=5)  # of the tensors, in turn


def drawn_shapes(least: int, images: int) -> st.SearchStrategy[Shape]:
    """Shapes with at least so many classes and channels of each kind and images, and any number of locations."""
    names = dict.fromkeys("CDKO", st.integers(min_value=least, max_value=40)) | {"L": st.integers(1, 40)}
    return st.builds(
        Shape, st.just("drawn"), st.integers(images, 3), T=st.integers(1, 4), saturated=st.booleans(), **names
    )


def on_draws(count: int, body: Callable[[st.DataObject], None]) -> None:
    """Run the body on a number of draws, the same ones every time."""
    silent = [HealthCheck.too_slow, HealthCheck.data_too_large]
    options = settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=silent)
    options(given(data=st.data())(body))()


def on_operation(stem: str, backend: str, count: int) -> None:
    """One operation in float64 and float32, each draw held on its own."""

    def body(data: st.DataObject) -> None:
        shape = data.draw(drawn_shapes(1, 0), label="shape")
        variant = data.draw(st.sampled_from(VARIANTS[stem]), label="variant")
        dtype = data.draw(st.sampled_from(EXACT), label="dtype")
        laid = data.draw(layouts, label="layouts")
        assert_within_budget(
            stem, dtype, [compare(stem, shape, dtype, backend, variant, seed, laid) for seed in SEEDS], pooled=True
        )

    on_draws(count, body)


def on_operation_reduced(stem: str, backend: str, dtype: torch.dtype, count: int) -> None:
    """One operation in a reduced dtype, many draws held together."""
    skip_unless_it_runs(backend, dtype)
    pool: list[Comparison] = []
    variants = itertools.cycle(VARIANTS[stem])  # in turn, for each to have its share of a pool

    def body(data: st.DataObject) -> None:
        shape, laid = data.draw(drawn_shapes(24, 1), label="shape"), data.draw(layouts, label="layouts")
        variant = next(variants)
        pool.extend(compare(stem, shape, dtype, backend, variant, seed, laid) for seed in SEEDS)
        if len(pool) >= 2 * POOLED:
            assert_within_budget(stem, dtype, pool[:POOLED])
            del pool[:POOLED]

    on_draws(count, body)
    assert_within_budget(stem, dtype, pool)


def on_head(count: int) -> None:
    """The head, however it is built, run and fed, in float64 and float32."""

    def body(data: st.DataObject) -> None:
        small, side = st.integers(min_value=1, max_value=24), st.integers(min_value=1, max_value=6)
        sizes = {letter: data.draw(small, label=letter) for letter in "CDSKMO"}
        sizes |= {letter: data.draw(side, label=letter) for letter in "HW"}
        sizes["B"] = data.draw(st.integers(min_value=0, max_value=3), label="B")
        options = {
            "steps": data.draw(st.integers(min_value=1, max_value=4), label="T"),
            "mode": data.draw(st.sampled_from(["paper", "official"]), label="mode"),
            "recompute": data.draw(st.booleans(), label="recompute"),
            "backend": data.draw(st.sampled_from([None, "reference"]), label="backend"),
        }
        dtype = data.draw(st.sampled_from(EXACT), label="dtype")
        laid = data.draw(st.sampled_from([None, "channels_last", *LAYOUTS]), label="layout")
        found = [compare_heads(sizes, options, dtype, laid, seed) for seed in SEEDS]
        for name in found[0]:
            results, truths, plains = (list(column) for column in zip(*(each[name] for each in found), strict=True))
            rule: dict[str, Any] = {"operation": "head", "gradient": name.startswith("d_"), "dtype": dtype}
            testing.assert_close_to_truth(name, results, truths, plains, **rule)

    on_draws(count, body)


def compare_heads(
    sizes: dict[str, int], options: dict[str, Any], dtype: torch.dtype, laid: str | None, seed: int
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Result, float64 truth and plain form, the latter two by the published equations, of each output and gradient."""
    torch.manual_seed(seed)
    B, C, D, S, H, W = (sizes[letter] for letter in "BCDSHW")
    extents = {"joint_dim": sizes["K"], "attention_dim": sizes["M"], "out_dim": sizes["O"]}
    words, graph, x = torch.randn(C, S), torch.rand(C, C) / C, torch.randn(B, D, H, W, dtype=dtype)
    head, wide = (SSGRLHead(D, words, graph, **extents, **options).to(t) for t in (dtype, torch.float64))
    wide.load_state_dict(head.state_dict())
    upstream = torch.randn(B, C, dtype=dtype)
    truth, plain = published(wide, x.double(), upstream.double()), published(head, x, upstream)
    if laid == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif laid is not None:
        x = LAYOUTS[laid](x)
    logits, attention = head(x.requires_grad_(), return_attention=True)
    logits.backward(upstream)
    decoupling, gates, rows = head.semantic_decoupling, head.graph_propagation, head.classifier
    assert gates is not None and gates.weight_h.grad is not None and gates.weight_zr.grad is not None
    assert x.grad is not None
    mine = [logits, attention.flatten(2), x.grad.permute(0, 2, 3, 1).flatten(1, 2)]
    mine += [decoupling.weight_u.grad, decoupling.weight_v.grad, gates.weight_h.grad[:, 2 * D :]]
    mine += [gates.weight_zr.grad[:D, D:], rows.weight_o.grad, rows.weight_c.grad]
    names = ("logits", "attention", "d_x", "d_image", "d_word", "d_u_h", "d_w_z", "d_output", "d_classifier")
    return dict(zip(names, zip(mine, truth, plain, strict=True), strict=True))


def published(head: SSGRLHead, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """What compare_heads compares, in the same order, by the published equations on the head's weights."""
    weights = published_weights(head)
    rows = x.permute(0, 2, 3, 1).flatten(1, 2).contiguous().requires_grad_()
    options: dict[str, Any] = {"steps": head.steps, "reset_gate": head.mode}
    logits, attention = published_head(rows, head.words, head.adjacency, weights, **options)
    logits.backward(upstream)
    leaves = [rows, weights.image, weights.word, weights.u_h, weights.w_z, weights.output, weights.classifier]
    return [logits, attention, *(leaf.grad for leaf in leaves)]


@pytest.mark.thorough
@by_backend
@by_each_stem
def test_parity_on_drawn_shapes(stem: str, backend: str) -> None:
    on_operation(stem, backend, 100)


@pytest.mark.thorough
@pytest.mark.parametrize("backend", [p for p in backend_params() if p.id != "reference"])
@by_each_stem
def test_parity_on_drawn_shapes_in_bfloat16(stem: str, backend: str) -> None:
    on_operation_reduced(stem, backend, torch.bfloat16, 100)


@pytest.mark.thorough
def test_drawn_heads_are_the_published_form() -> None:
    on_head(100)


@pytest.mark.long
@by_backend
@by_each_stem
def test_parity_on_thousands_of_drawn_shapes(stem: str, backend: str) -> None:
    on_operation(stem, backend, 2000)


@pytest.mark.long
@by_backend
@by_each_stem
@pytest.mark.parametrize("dtype", REDUCED, ids=str)
def test_parity_on_hundreds_of_drawn_shapes_in_reduced_dtypes(dtype: torch.dtype, stem: str, backend: str) -> None:
    on_operation_reduced(stem, backend, dtype, 500)


@pytest.mark.long
def test_a_thousand_drawn_heads_are_the_published_form() -> None:
    on_head(1000)
