"""The products with the gates in their epilogues: right however their tiles are shared out, and how they are."""

from __future__ import annotations

from itertools import product

import operations
import pytest
import torch

pytest.importorskip("triton")
from ssgrl_fast.backends.calls import Gates, GraphPropagationCall
from ssgrl_fast.backends.reference import EQUATIONS
from ssgrl_fast.kernels import gated_product, graph_propagation, label_scores, launch
from ssgrl_fast.kernels.gated_product import BLEND, GATES, GROUP, OUTPUT, RESET, Share, share
from ssgrl_fast.kernels.launch import cdiv

runs_here = pytest.mark.skipif(
    not operations.runs("triton", torch.float16), reason="needs Triton's interpreter: TRITON_INTERPRET=1"
)
LIMITS = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
each_dtype = pytest.mark.parametrize("dtype", LIMITS, ids=lambda dtype: str(dtype).removeprefix("torch."))
DIM = 256 if torch.get_default_device().type == "cuda" else 128  # two pieces of a tile's columns
IMAGES, CLASSES, STEPS = 3, 61, 2  # 183 rows: the last tile of rows is short
H100 = {"slots": 132, "rate": 0.9, "m": 128, "n": 256, "block": 64}


def shared_as(monkeypatch: pytest.MonkeyPatch, whole: int, split: int, but: tuple[int, ...] = ()) -> None:
    """Share out every product like this; those of some kinds are the vendor's."""

    def fixed(
        rows: int, columns: int, k: int, kind: int, slots: int, rate: float, m: int, n: int, block: int
    ) -> Share | None:
        if kind in but:
            return None
        count = cdiv(rows, m) * (columns // n)
        first = whole * GROUP.value * (columns // n) if kind == OUTPUT.value else whole  # whole rows of tiles
        return Share(count if split == 1 else min(first, count), split, count)

    monkeypatch.setattr(gated_product, "share", fixed)


def errors(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


@runs_here
@each_dtype
@pytest.mark.parametrize(("whole", "split"), [(0, 1), (0, 3), (2, 5)])
@pytest.mark.parametrize("few", [False, True], ids=["many", "few"])
@pytest.mark.parametrize("biased", [False, True], ids=["no_bias", "bias"])
def test_propagation(
    biased: bool, few: bool, whole: int, split: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States, saved values and a second run; split 5 leaves a part with fewer blocks than the others."""
    operations.skip_unless_it_runs("triton", dtype)
    shared_as(monkeypatch, whole, split)
    images = 1 if few else IMAGES
    torch.manual_seed(0)
    h0, graph = torch.randn(images, CLASSES, DIM).to(dtype), (torch.rand(CLASSES, CLASSES) / CLASSES).to(dtype)
    weights = [torch.randn(rows, 3 * DIM).to(dtype) / DIM**0.5 for rows in (2 * DIM, DIM)]
    biases = [torch.randn(rows).to(dtype) for rows in (2 * DIM, DIM)] if biased else []
    call = (h0, graph, None, None, weights, biases, STEPS, False)
    h_T, states, gates, _ = graph_propagation.forward(*call, True)
    again, (inferred, *_) = graph_propagation.forward(*call, True), graph_propagation.forward(*call, False)
    assert torch.equal(h_T, again[0]) and torch.equal(gates, again[2]) and torch.equal(h_T, inferred)
    h, a, (zr, n), b = h0.double(), graph.double(), (w.double() for w in weights), [b.double() for b in biases]
    for t in range(STEPS):
        messages = torch.cat([a @ h, a.T @ h], -1)
        before = torch.cat([h, messages], -1) @ zr.T
        z, r = (before + (b[0] if b else 0)).sigmoid().chunk(2, -1)
        last = torch.cat([messages, r * h], -1) @ n.T
        x, g = states[t].view(images, CLASSES, 4, DIM), gates[t].view(images, CLASSES, 3 * DIM)
        for found, truth in ((x[:, :, 0], h), (x[:, :, 3], r * h), (g, torch.cat([before, last], -1))):
            assert errors(found, truth) < LIMITS[dtype]
        h = (1 - z) * h + z * (last + (b[1] if b else 0)).tanh()
    assert errors(h_T, h) < LIMITS[dtype]


@runs_here
@each_dtype
@pytest.mark.parametrize(("whole", "split"), [(0, 1), (0, 2), (2, 2)])
@pytest.mark.parametrize("biased", [False, True], ids=["no_bias", "bias"])
def test_gradients(biased: bool, whole: int, split: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gradient where that of G_r is in the epilogue of the product that gives d_(r⊙h), against autograd's in
    float64, and as near to it as with a kernel of its own."""
    operations.skip_unless_it_runs("triton", dtype)
    torch.manual_seed(0)
    h0, graph = torch.randn(IMAGES, CLASSES, DIM).to(dtype), (torch.rand(CLASSES, CLASSES) / CLASSES).to(dtype)
    weights = [torch.randn(rows, 3 * DIM).to(dtype) / DIM**0.5 for rows in (2 * DIM, DIM)]
    biases = [torch.randn(rows).to(dtype) for rows in (2 * DIM, DIM)] if biased else []
    leaves = [tensor.double().requires_grad_() for tensor in (h0, *weights, *biases)]
    gates = Gates(tuple(leaves[1:3]), tuple(leaves[3:]))
    (h_T,) = EQUATIONS["graph_propagation"](
        GraphPropagationCall(leaves[0], graph.double(), None, None, gates, STEPS, "paper")
    )
    grad = torch.randn(h_T.shape).to(dtype)
    truth = torch.autograd.grad(h_T, leaves, grad.double())
    start, found = (h0, graph, None, None, weights, biases), {}
    for fused in (True, False):
        shared_as(monkeypatch, whole, split, but=() if fused else (RESET.value,))
        _, *saved = graph_propagation.forward(*start, STEPS, False, True)
        calls = [graph_propagation.backward(grad, *start, saved, STEPS, False, False) for _ in range(2)]
        first, again = ([d_h0, *d_weights, *d_biases] for d_h0, _, _, d_weights, d_biases in calls)
        assert all(map(torch.equal, first, again))
        with launch.recorded() as kernels:
            graph_propagation.backward(grad, *start, saved, STEPS, False, False)
        assert ("gate_backward_kernel" in [one.kernel.fn.__name__ for one in kernels]) != fused
        found[fused] = [errors(one, true) for one, true in zip(first, truth, strict=True)]
    assert all(a <= 1.2 * b for a, b in zip(found[True], found[False], strict=True)), found
    assert max(found[True]) < 4 * LIMITS[dtype]


@runs_here
@each_dtype
@pytest.mark.parametrize(("whole", "split"), [(0, 1), (0, 3), (1, 3)])
@pytest.mark.parametrize("biased", [False, True], ids=["no_bias", "bias"])
def test_scores(biased: bool, whole: int, split: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    operations.skip_unless_it_runs("triton", dtype)
    shared_as(monkeypatch, whole, split)
    torch.manual_seed(0)
    images = 18 if whole else IMAGES  # 1,098 rows: a group of tiles is whole, the others are in parts
    shapes = [(images, CLASSES, DIM)] * 2 + [(CLASSES, 2 * DIM)]
    h_T, h0, weight_c = (torch.randn(*shape).to(dtype) for shape in shapes)
    weight_o = (torch.randn(2 * DIM, 2 * DIM) / DIM**0.5).to(dtype)
    biases = [torch.randn(size).to(dtype) for size in (2 * DIM, CLASSES)] if biased else [None, None]
    call = (h_T, h0, None, None, weight_o, biases[0], weight_c, biases[1])
    logits, output, _ = label_scores.forward(*call, True)
    assert torch.equal(logits, label_scores.forward(*call, False)[0])
    bias_o, bias_c = (0 if bias is None else bias.double() for bias in biases)
    o = torch.cat([h_T, h0], -1).double() @ weight_o.double().T + bias_o
    assert errors(output.view_as(o), o) < LIMITS[dtype]
    assert errors(logits, (o.tanh() * weight_c.double()).sum(-1) + bias_c) < LIMITS[dtype]


@runs_here
def test_a_state_that_is_not_finite_stays_in_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts hold rows of several images side by side."""
    shared_as(monkeypatch, 1, 3)
    torch.manual_seed(0)
    h0, graph = torch.randn(IMAGES, CLASSES, DIM).half(), (torch.rand(CLASSES, CLASSES) / CLASSES).half()
    weights = [torch.randn(2 * DIM, 3 * DIM).half() / DIM, torch.randn(DIM, 3 * DIM).half() / DIM]
    call = (graph, None, None, weights, [], STEPS, False, False)
    clean = graph_propagation.forward(h0, *call)[0]
    h0[1, 7, 5] = float("inf")
    h_T = graph_propagation.forward(h0, *call)[0]
    assert torch.equal(h_T[::2], clean[::2]) and not bool(h_T[1].isfinite().all())


def test_products_as_they_are_shared_out() -> None:
    """At D = 2048 and C = 80 on an H100: whole waves, then parts; the vendor's where those gain nothing."""
    gates, blend = (4096, 6144, GATES.value), (2048, 6144, BLEND.value)
    assert share(1280, *gates, **H100) == Share(132, 4, 160)
    assert share(1280, *blend, **H100) == Share(0, 3, 80)
    assert share(5120, *gates, **H100) is None
    assert share(5120, *blend, **H100) == Share(264, 2, 320)
    assert share(8000, *gates, **H100) is None and share(8000, *blend, **H100) == Share(504, 1, 504)
    assert share(5120, 2048, 4096, OUTPUT.value, **H100) == Share(256, 2, 320)
    assert share(5120, 2048, 2048, RESET.value, **H100) == Share(264, 2, 320)
    assert share(1280, 2048, 2048, RESET.value, **H100) is None and share(80, 2048, 2048, RESET.value, **H100) is None
    a100 = {"slots": 108, "rate": 0.75, "m": 128, "n": 128, "block": 32}
    assert share(1280, *blend, **a100) == Share(108, 2, 160) and share(5120, *blend, **a100) is None
    few = {"slots": 132, "rate": 0.9, "m": 128, "n": 64, "block": 64}
    for columns, k, kind in (gates, blend):
        found = share(80, columns, k, kind, **few)
        assert found is not None and found.whole == 0 and found.split > 1 and 100 <= found.programs <= 264


@pytest.mark.parametrize("kind", [GATES, BLEND, OUTPUT, RESET], ids=["gates", "blend", "output", "reset"])
def test_every_tile_has_its_programs(kind: gated_product.tl.constexpr) -> None:
    for rows, columns, k in product((1, 80, 128, 129, 5120), (256, 2048, 4096), (128, 6144)):
        found = share(rows, columns, k, kind.value, **H100)
        if found is None:
            assert rows > gated_product.FEW or kind.value == RESET.value
            continue
        assert found.tiles == cdiv(rows, 128) * columns // 256 and 0 <= found.whole <= found.tiles
        assert 1 <= found.split <= min(gated_product.MOST_PARTS, k // 64)
        assert found.programs == found.whole + (found.tiles - found.whole) * found.split
        if kind.value == OUTPUT.value:
            assert found.split == 1 or found.whole % (GROUP.value * (columns // 256)) == 0
