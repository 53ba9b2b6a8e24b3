"""Sums that are split over programs or left to the vendor: scores over parts of K, and the aggregation both ways."""

from __future__ import annotations

import operations
import pytest
import torch

pytest.importorskip("triton")
from ssgrl_fast.kernels import aggregate, launch, semantic_attention, split_tanh, tile_tables
from ssgrl_fast.kernels.products import aligned

runs_here = pytest.mark.skipif(
    not operations.runs("triton", torch.float16), reason="needs Triton's interpreter: TRITON_INTERPRET=1"
)
WIDE = 50.0
"""A value of u that no polynomial reaches, in its own part of the channels."""


@runs_here
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_scores_do_not_depend_on_the_number_of_parts(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """K = 131 in one part and in as many as there are tiles of channels, the last one short; each run twice alike."""
    for table in ("split_scores", "scores_exact"):
        own = tile_tables.TABLES["interpreter"][table]
        monkeypatch.setitem(tile_tables.TABLES["interpreter"], table, own | {"BLOCK_K": 32})
    torch.manual_seed(0)
    u, v, p = torch.randn(2, 19, 131), torch.randn(11, 131) * 0.3, torch.randn(131)
    u[1, 4, 70] = WIDE
    u, v, features = u.to(dtype), v.to(dtype), torch.randn(2, 19, 40).to(dtype)
    truth = torch.einsum("k,blck->bcl", p.double(), (u.double()[:, :, None] * v.double()).tanh()).softmax(-1)
    found, limit = [], 2.0**-8 if dtype == torch.float16 else 1e-5
    for programs in (0, launch.PROGRAMS):
        monkeypatch.setattr(launch, "PROGRAMS", programs)
        pooled, attention = semantic_attention.forward(u, v, p, features)
        again = semantic_attention.forward(u, v, p, features)
        assert torch.equal(pooled, again[0]) and torch.equal(attention, again[1])
        assert ((attention - truth) / truth).abs().max() <= limit
        expected = truth @ features.double()
        assert (pooled - expected).abs().max() <= limit * expected.abs().max()
        if dtype == torch.float16:
            found.append(len(split_tanh.scores(u.reshape(-1, 131), v, p, 2, 19)))
    assert found in ([], [1, 5])


@pytest.mark.parametrize(
    ("programs", "extent", "expected"), [(162, 1024, (3, 352)), (2, 1024, (32, 32)), (10**6, 1024, (1, 1024))]
)
def test_parts_fill_the_gpu_and_cover_the_sum(programs: int, extent: int, expected: tuple[int, int]) -> None:
    assert launch.split(programs, extent, 32, torch.device("cpu")) == expected
    for size in (0, 1, 31, 33, 1000):
        parts, part = launch.split(programs, size, 32, torch.device("cpu"))
        assert part % 32 == 0 and (parts - 1) * part < max(size, 1) <= parts * part


@runs_here
@pytest.mark.parametrize(("images", "classes"), [(2, 21), (1, 1)])
@pytest.mark.parametrize("most", [0, aggregate.KERNEL_CLASSES], ids=["product", "kernel"])
def test_both_ways_of_aggregation(most: int, images: int, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate, "KERNEL_CLASSES", most)
    dim = 24
    torch.manual_seed(0)
    graph, x = torch.rand(classes, classes).half() / classes, torch.randn(images * classes, 4 * dim).half()
    h, inward, outward, rest = x.double().view(images, classes, 4, dim).unbind(2)
    d_h = h + graph.double().T @ inward + graph.double() @ outward
    forward, backward, other = x.clone(), x.clone(), torch.full((images * classes, dim), torch.nan).half()
    aggregate.aggregate(forward, aligned(graph), classes, None, None)
    aggregate.aggregate_backward(backward, aligned(graph), classes, other)
    assert torch.equal(backward, x)
    aggregate.aggregate_backward(backward, aligned(graph), classes, backward[:, :dim])
    assert torch.equal(backward[:, :dim], other)
    expected = torch.stack([h, graph.double() @ h, graph.double().T @ h, rest], 2)
    assert torch.allclose(forward.view(images, classes, 4, dim).double(), expected, rtol=1e-3, atol=1e-3)
    expected = torch.stack([d_h, inward, outward, rest], 2)
    assert torch.allclose(backward.view(images, classes, 4, dim).double(), expected, rtol=2e-3, atol=2e-3)


@runs_here
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("width", "biased"), [(3, True), (4, False)])
def test_the_gradient_goes_on_through_the_step_before(width: int, biased: bool, dtype: torch.dtype) -> None:
    """In two tiles of classes; columns that are not its own keep what they hold."""
    operations.skip_unless_it_runs("triton", dtype)
    images, classes, dim = 2, 69, 24
    torch.manual_seed(0)
    graph = (torch.rand(classes, classes) / classes).to(dtype)
    x, d_x, g = (torch.randn(images, classes, columns, dim).to(dtype) for columns in (4, 4, 3))
    d_g, biases = torch.full((images, classes, width, dim), 7.0).to(dtype), torch.randn(2, dim).to(dtype)
    own, inward, outward, rest = d_x.double().unbind(2)
    d = own + graph.double().T @ inward + graph.double() @ outward
    b_z, b_n = biases.double() if biased else (0, 0)
    z, n, h = (g[:, :, 0].double() + b_z).sigmoid(), (g[:, :, 2].double() + b_n).tanh(), x[:, :, 0].double()
    blend = {"p_g": g, "p_x": x, "p_d_g": d_g, "p_bias_z": biases[0], "p_bias_n": biases[1]}
    flat = d_x.view(images * classes, 4 * dim)
    blend |= {"WIDTH": width, "HAS_BIAS": biased}
    aggregate.aggregate_backward(flat, aligned(graph), classes, flat[:, :dim], blend)
    expected = torch.full_like(d_g, 7.0, dtype=torch.float64)
    expected[:, :, 0], expected[:, :, 2] = d * (n - h) * z * (1 - z), d * z * (1 - n * n)
    limit = 4 * torch.finfo(dtype).eps
    for found, truth in ((d_g, expected), (d_x, torch.stack([d * (1 - z), inward, outward, rest], 2))):
        assert (found.double() - truth).abs().max() <= limit * truth.abs().max()
    assert torch.equal(d_g[:, :, 1], torch.full_like(d_g[:, :, 1], 7.0))


@runs_here
@pytest.mark.parametrize("most", [0, aggregate.KERNEL_CLASSES], ids=["product", "kernel"])
def test_the_first_aggregation_copies_the_state_and_clears_counts(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate, "KERNEL_CLASSES", most)
    images, classes, dim = 2, 81, 24
    torch.manual_seed(0)
    graph, start = torch.rand(classes, classes).half() / classes, torch.randn(images * classes, dim).half()
    rest = torch.randn(images * classes, 4 * dim).half()
    expected = rest.clone()
    expected[:, :dim] = start
    aggregate.aggregate(expected, aligned(graph), classes, None, None)
    counts = torch.full((2, 307), 5, dtype=torch.int32)
    aggregate.aggregate(rest, aligned(graph), classes, start, counts)
    assert torch.equal(rest, expected) and not counts.any()


def test_aligned_rows_begin_at_multiples_of_16() -> None:
    for shape in ((3, 5), (2, 3, 81), (4, 16)):
        given = torch.randn(shape)
        found = aligned(given, torch.float16)
        assert torch.equal(found, given.half()) and all(step % 16 == 0 for step in found.stride()[:-1])
        assert (aligned(given) is given) == (shape[-1] == 16)
