"""The reference against the scalar loops of paper_loops.py, and its hand-written backwards."""

from __future__ import annotations

import math
from collections.abc import Callable

import paper_loops
import pytest
import shapes
import torch
from equations import EXACT, by_bias, by_factors, by_gate, gates_of, relative
from shapes import GRADCHECK_SHAPES, LOOP_SHAPES, SHAPES, Inputs, Shape
from torch import Tensor

from ssgrl_fast import reference
from ssgrl_fast.reference.graph_propagation import graph_propagation_backward, graph_propagation_forward
from ssgrl_fast.reference.label_scores import label_scores_backward, label_scores_forward
from ssgrl_fast.reference.numerics import sech_squared, sigmoid_slope
from ssgrl_fast.reference.semantic_attention import semantic_attention_backward, semantic_attention_forward

by_shape = pytest.mark.parametrize("shape", LOOP_SHAPES, ids=shapes.shape_id)


# The loops.


@by_shape
def test_semantic_attention_follows_the_loops(shape: Shape) -> None:
    inputs = shapes.semantic_attention_inputs(shape)
    pooled, attention = reference.semantic_attention(**inputs)
    loop_pooled, loop_attention = paper_loops.semantic_attention(
        *(inputs[n].numpy() for n in ("u", "v", "p", "features"))
    )
    assert relative(pooled, torch.from_numpy(loop_pooled)) <= EXACT
    assert relative(attention, torch.from_numpy(loop_attention)) <= EXACT


@by_shape
@by_gate
@by_bias
@by_factors
def test_graph_propagation_follows_the_loops(shape: Shape, reset_gate: str, bias: bool, factors: bool) -> None:
    inputs = shapes.graph_propagation_inputs(shape, bias=bias, factors=factors)
    h_T = reference.graph_propagation(**inputs, steps=shape.T, reset_gate=reset_gate)
    loop = paper_loops.graph_propagation(
        inputs["h0"].numpy(), inputs["adjacency"].numpy(), gates_of(inputs), shape.T, reset_gate
    )
    assert relative(h_T, torch.from_numpy(loop)) <= EXACT


def test_the_reset_gates_differ() -> None:
    inputs = shapes.graph_propagation_inputs(SHAPES["tiny"])
    paper = reference.graph_propagation(**inputs, reset_gate="paper")
    official = reference.graph_propagation(**inputs, reset_gate="official")
    assert relative(official, paper) > 1e-3


@by_shape
@by_factors
def test_label_scores_follow_the_loops(shape: Shape, factors: bool) -> None:
    inputs = shapes.label_scores_inputs(shape, factors=factors)
    logits = reference.label_scores(**inputs)
    names = ("h_T", "h0", "weight_o", "bias_o", "weight_c", "bias_c")
    assert relative(logits, torch.from_numpy(paper_loops.label_scores(*(inputs[n].numpy() for n in names)))) <= EXACT


def test_label_scores_without_biases_is_that_with_zeros() -> None:
    inputs = shapes.label_scores_inputs(SHAPES["tiny"], bias=False)
    zeros = inputs | {"bias_o": torch.zeros(5, dtype=torch.float64), "bias_c": torch.zeros(3, dtype=torch.float64)}
    names = ("h_T", "h0", "weight_o", "bias_o", "weight_c", "bias_c")
    loop = torch.from_numpy(paper_loops.label_scores(*(zeros[n].numpy() for n in names)))
    assert relative(reference.label_scores(**inputs), loop) <= EXACT


def test_gradients_are_the_slopes_of_the_loops() -> None:
    """Central differences of the loops of the whole head, along random directions, against the reference's autograd."""
    shape = SHAPES["tiny"]
    attend, graph = shapes.semantic_attention_inputs(shape), shapes.graph_propagation_inputs(shape)
    label = shapes.label_scores_inputs(shape)
    names = [
        "u",
        "v",
        "p",
        "features",
        "weight_zr",
        "bias_zr",
        "weight_h",
        "bias_h",
        "weight_o",
        "bias_o",
        "weight_c",
        "bias_c",
    ]
    point = {n: t for n, t in (attend | graph | label).items() if n in names} | {"features": attend["features"]}
    weights = shapes.normal(shapes.generator(5), shape.B, shape.C)

    def head(x: dict[str, Tensor]) -> Tensor:
        h0, attention = reference.semantic_attention(x["u"], x["v"], x["p"], x["features"])
        factors = {"attention": attention, "features": x["features"]}
        gates = (x["weight_zr"], x["bias_zr"], x["weight_h"], x["bias_h"])
        h_T = reference.graph_propagation(h0, graph["adjacency"], *gates, **factors)
        return reference.label_scores(h_T, h0, *(x[n] for n in names[8:]), **factors)

    def loops(x: dict[str, Tensor]) -> float:
        h0, _ = paper_loops.semantic_attention(*(x[n].numpy() for n in names[:4]))
        h_T = paper_loops.graph_propagation(h0, graph["adjacency"].numpy(), gates_of(x), 3)
        return float((paper_loops.label_scores(h_T, h0, *(x[n].numpy() for n in names[8:])) * weights.numpy()).sum())

    leaves = {n: t.clone().requires_grad_() for n, t in point.items()}
    (head(leaves) * weights).sum().backward()
    step = 1e-5
    for i, name in enumerate(names):
        direction = shapes.normal(shapes.generator(20 + i), *point[name].shape)
        up, down = point | {name: point[name] + step * direction}, point | {name: point[name] - step * direction}
        slope = (loops(up) - loops(down)) / (2 * step)
        expected = float((leaves[name].grad * direction).sum())
        assert abs(slope - expected) <= 1e-7 * max(1.0, abs(expected)), name


# Hand-written backwards.


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, v, p, features):
        pooled, attention = semantic_attention_forward(u, v, p, features)
        ctx.save_for_backward(u, v, p, features, attention)
        return pooled, attention

    @staticmethod
    def backward(ctx, grad_pooled, grad_attention):
        return semantic_attention_backward(grad_pooled, grad_attention, *ctx.saved_tensors)


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h0, adjacency, weight_zr, bias_zr, weight_h, bias_h, steps, reset_gate):
        h_T, states, gates = graph_propagation_forward(
            h0, adjacency, weight_zr, bias_zr, weight_h, bias_h, steps, reset_gate
        )
        ctx.save_for_backward(adjacency, weight_zr, weight_h, states, gates)
        ctx.reset_gate = reset_gate
        return h_T

    @staticmethod
    def backward(ctx, grad):
        d_h0, *d_weights = graph_propagation_backward(grad, *ctx.saved_tensors, ctx.reset_gate)
        return d_h0, None, *d_weights, None, None


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h_T, h0, weight_o, bias_o, weight_c, bias_c):
        logits, output = label_scores_forward(h_T, h0, weight_o, bias_o, weight_c, bias_c)
        ctx.save_for_backward(h_T, h0, weight_o, weight_c, output)
        return logits

    @staticmethod
    def backward(ctx, grad):
        return label_scores_backward(grad, *ctx.saved_tensors)


def leaves_of(inputs: Inputs, names: tuple[str, ...]) -> list[Tensor]:
    return [inputs[n].clone().requires_grad_() for n in names]


ATTENTION_NAMES = ("u", "v", "p", "features")
PROPAGATION_NAMES = ("h0", "weight_zr", "bias_zr", "weight_h", "bias_h")
SCORES_NAMES = ("h_T", "h0", "weight_o", "bias_o", "weight_c", "bias_c")


def hand_written_and_plain(
    stem: str, inputs: Inputs, steps: int, reset_gate: str
) -> tuple[Callable, Callable, tuple[str, ...]]:
    """The operation with its hand-written backward, the same by PyTorch's autograd, and the names of its leaves."""
    if stem == "semantic_attention":
        return _Attention.apply, reference.semantic_attention, ATTENTION_NAMES
    if stem == "label_scores":
        return _Scores.apply, reference.label_scores, SCORES_NAMES
    A = inputs["adjacency"]

    def by_hand(h0: Tensor, *weights: Tensor) -> Tensor:
        return _Propagation.apply(h0, A, *weights, steps, reset_gate)

    def plain(h0: Tensor, *weights: Tensor) -> Tensor:
        return reference.graph_propagation(h0, A, *weights, steps=steps, reset_gate=reset_gate)

    return by_hand, plain, PROPAGATION_NAMES


STEMS_AND_GATES = [
    ("semantic_attention", "paper"),
    ("graph_propagation", "paper"),
    ("graph_propagation", "official"),
    ("label_scores", "paper"),
]
by_stem = pytest.mark.parametrize(("stem", "reset_gate"), STEMS_AND_GATES)


@by_stem
@pytest.mark.parametrize("shape", GRADCHECK_SHAPES, ids=shapes.shape_id)
def test_hand_written_backward_passes_gradcheck(stem: str, reset_gate: str, shape: Shape) -> None:
    inputs = shapes.INPUTS[stem](shape)
    by_hand, _, names = hand_written_and_plain(stem, inputs, 2, reset_gate)
    assert torch.autograd.gradcheck(by_hand, leaves_of(inputs, names), eps=1e-6, atol=1e-8, rtol=1e-6)


@by_stem
@pytest.mark.parametrize("shape", SHAPES.values(), ids=shapes.shape_id)
def test_hand_written_backward_is_autograd(stem: str, reset_gate: str, shape: Shape) -> None:
    """On every named shape, isolated classes and saturation among them."""
    inputs = shapes.INPUTS[stem](shape, seed=1)
    by_hand, plain, names = hand_written_and_plain(stem, inputs, shape.T, reset_gate)
    gradients = []
    for function in (by_hand, plain):
        leaves = leaves_of(inputs, names)
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        grads = [shapes.normal(shapes.generator(3 + i), *o.shape) for i, o in enumerate(outputs)]
        gradients.append(torch.autograd.grad(outputs, leaves, grads))
    for name, mine, truth in zip(names, *gradients, strict=True):
        if name in ("u", "v", "p") and shape.L == 1:
            assert float(mine.abs().max()) <= 1e-15, f"{name}: a softmax over one location has no gradient"
        else:
            assert relative(mine, truth) <= EXACT, name


@pytest.mark.parametrize("missing", ["pooled", "attention"])
def test_semantic_attention_backward_with_one_gradient_absent(missing: str) -> None:
    inputs = shapes.semantic_attention_inputs(SHAPES["odd"])
    leaves = leaves_of(inputs, ATTENTION_NAMES)
    pooled, attention = reference.semantic_attention(*leaves)
    output = attention if missing == "pooled" else pooled
    grad = shapes.normal(shapes.generator(9), *output.shape)
    truth = torch.autograd.grad(output, leaves, grad, allow_unused=True)
    grads = (None, grad) if missing == "pooled" else (grad, None)
    mine = semantic_attention_backward(*grads, *(inputs[n] for n in ATTENTION_NAMES), attention.detach())
    for name, m, t in zip(ATTENTION_NAMES, mine, truth, strict=True):
        assert relative(m, torch.zeros_like(m) if t is None else t) <= EXACT, name


def test_official_gate_leaves_the_reset_gates_own_state_weight_untouched() -> None:
    """D1: fc_eq4_u of the published layout gets no gradient."""
    inputs = shapes.graph_propagation_inputs(SHAPES["tiny"])
    leaves = leaves_of(inputs, PROPAGATION_NAMES)
    _Propagation.apply(leaves[0], inputs["adjacency"], *leaves[1:], 3, "official").sum().backward()
    D = SHAPES["tiny"].D
    assert torch.equal(leaves[1].grad[D:, :D], torch.zeros(D, D, dtype=torch.float64))
    assert leaves[1].grad[:D, :D].abs().max() > 0


@by_factors
@pytest.mark.parametrize("stem", ["graph_propagation", "label_scores"])
def test_factors_take_the_whole_gradient(stem: str, factors: bool) -> None:
    """With factors h0 gets none, and theirs is the chain rule through attention @ features."""
    inputs = shapes.INPUTS[stem](SHAPES["few_locations"], factors=True)
    leaves = {n: t.clone().requires_grad_() for n, t in inputs.items() if n in ("h0", "attention", "features")}
    rest = {n: t for n, t in inputs.items() if n not in leaves}
    function = getattr(reference, stem)
    if factors:
        function(**leaves, **rest).square().sum().backward()
        assert leaves["h0"].grad is None
    else:
        function(h0=leaves["attention"] @ leaves["features"], **rest).square().sum().backward()
    product = (inputs["attention"] @ inputs["features"]).requires_grad_()
    function(h0=product, **rest).square().sum().backward()
    assert relative(leaves["attention"].grad, product.grad @ inputs["features"].mT) <= EXACT
    assert relative(leaves["features"].grad, inputs["attention"].mT @ product.grad) <= EXACT


# Numerical building blocks.


def test_slopes_keep_their_digits_when_saturated() -> None:
    x = torch.cat(
        [torch.linspace(-40, 40, 1601, dtype=torch.float64), torch.tensor([1e-12, 300.0, -300.0], dtype=torch.float64)]
    )
    truth = torch.tensor([1.0 / math.cosh(v) ** 2 for v in x.tolist()], dtype=torch.float64)
    assert float(((sech_squared(x) - truth) / truth).abs().max()) <= 1e-14
    slope = torch.tensor([0.25 / math.cosh(0.5 * v) ** 2 for v in x.tolist()], dtype=torch.float64)
    assert float(((sigmoid_slope(x) - slope) / slope).abs().max()) <= 1e-14
    wide = torch.tensor([0.0, 1e4, -1e4, float("inf"), -float("inf")])
    assert sech_squared(wide).tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert sigmoid_slope(wide).tolist() == [0.25, 0.0, 0.0, 0.0, 0.0]
    assert sech_squared(torch.tensor([float("nan")])).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_reference_output_dtypes(dtype: torch.dtype) -> None:
    shape = SHAPES["tiny"]
    pooled, attention = reference.semantic_attention(**shapes.semantic_attention_inputs(shape, dtype))
    assert pooled.dtype == dtype and attention.dtype == shapes.wide(dtype)
    assert reference.graph_propagation(**shapes.graph_propagation_inputs(shape, dtype, factors=True)).dtype == dtype
    assert reference.label_scores(**shapes.label_scores_inputs(shape, dtype, factors=True)).dtype == dtype


def test_the_named_shapes_are_what_they_say() -> None:
    saturated = shapes.semantic_attention_inputs(SHAPES["saturated"])
    products = (saturated["u"][:, None] * saturated["v"][None, :, None]).abs()
    assert products.max() >= 1e4 and (products == 0).any() and ((products > 0) & (products < 1e-2)).any()
    for name in ("isolated", "no_edges"):
        A = shapes.adjacency(SHAPES[name])
        assert all(not A[c].any() and not A[:, c].any() for c in SHAPES[name].isolated)
    edges = shapes.adjacency(SHAPES["isolated"])
    assert edges.any() and not torch.equal(edges, edges.T) and not edges.diagonal().any()
    for layout, relay in shapes.LAYOUTS.items():
        laid = relay(products)
        assert torch.equal(laid, products)
        assert laid.stride() != products.stride() or laid.storage_offset() == 1, layout
