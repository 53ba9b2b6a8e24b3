"""The literal, published form of the head against the reference and against the scalar loops."""

from __future__ import annotations

import paper_loops
import pytest
import shapes
import torch
from equations import EXACT, by_bias, by_gate, numpy_of, relative
from shapes import SHAPES, Shape
from torch import Tensor

from ssgrl_fast import reference
from ssgrl_fast.reference import published


def published_inputs(shape: Shape, bias: bool) -> tuple[Tensor, Tensor, Tensor, published.PublishedWeights]:
    g = shapes.generator(77)
    B, L, C, D, K = shape.B, shape.L, shape.C, shape.D, shape.K
    S, M = 4, K + 2
    graph, label = shapes.graph_propagation_inputs(shape, bias=bias), shapes.label_scores_inputs(shape, bias=bias)
    zr, h, b_zr, b_h = (graph[n] for n in ("weight_zr", "weight_h", "bias_zr", "bias_h"))
    weights = published.PublishedWeights(
        image=shapes.normal(g, K, D, scale=D**-0.5), word=shapes.normal(g, K, S),
        joint=shapes.normal(g, M, K, scale=K**-0.5), joint_bias=shapes.normal(g, M),
        score=shapes.normal(g, 1, M), score_bias=shapes.normal(g, 1),
        w_z=zr[:D, D:], u_z=zr[:D, :D], b_z=b_zr[:D] if bias else None,
        w_r=zr[D:, D:], u_r=zr[D:, :D], b_r=b_zr[D:] if bias else None,
        w_h=h[:, : 2 * D], u_h=h[:, 2 * D :], b_h=b_h,
        output=label["weight_o"], output_bias=label["bias_o"],
        classifier=label["weight_c"], classifier_bias=label["bias_c"],
    )  # fmt: skip
    return shapes.normal(g, B, L, D), shapes.normal(g, C, S), graph["adjacency"], weights


def collapsed_head(
    features: Tensor, words: Tensor, adjacency: Tensor, w: published.PublishedWeights, steps: int, reset_gate: str
) -> tuple[Tensor, Tensor]:
    """The same head through the three operations of the reference."""
    p = (w.score @ w.joint).view(-1)
    h0, attention = reference.semantic_attention(features @ w.image.T, words @ w.word.T, p, features)
    zr = torch.cat([torch.cat([w.u_z, w.w_z], 1), torch.cat([w.u_r, w.w_r], 1)])
    h = torch.cat([w.w_h, w.u_h], 1)
    b_zr = None if w.b_z is None else torch.cat([w.b_z, w.b_r])
    h_T = reference.graph_propagation(h0, adjacency, zr, b_zr, h, w.b_h, steps=steps, reset_gate=reset_gate)
    return reference.label_scores(h_T, h0, w.output, w.output_bias, w.classifier, w.classifier_bias), attention


PUBLISHED_SHAPES = [
    SHAPES[n] for n in ("tiny", "one_class", "one_location", "odd", "few_locations", "isolated", "empty_batch")
]


@pytest.mark.parametrize("shape", PUBLISHED_SHAPES, ids=shapes.shape_id)
@by_gate
@by_bias
def test_published_form_equals_the_reference(shape: Shape, reset_gate: str, bias: bool) -> None:
    """Logits, attention, and the gradient of every weight and of the features."""
    features, words, adjacency, weights = published_inputs(shape, bias)
    leaves = {n: t for n, t in vars(weights).items() if t is not None} | {"features": features, "words": words}
    results = []
    for form in ("published", "collapsed"):
        fresh = {n: t.clone().requires_grad_() for n, t in leaves.items()}
        mine = published.PublishedWeights(**{n: fresh.get(n) for n in vars(weights)})
        args = (fresh["features"], fresh["words"], adjacency, mine)
        if form == "published":
            logits, attention = published.published_head(*args, steps=shape.T, reset_gate=reset_gate)
        else:
            logits, attention = collapsed_head(*args, shape.T, reset_gate)
        upstream = [shapes.normal(shapes.generator(i), *o.shape) for i, o in enumerate((logits, attention))]
        torch.autograd.backward([logits, attention], upstream)
        results.append((logits.detach(), attention.detach(), {n: t.grad for n, t in fresh.items()}))
    (logits, attention, grads), (logits_c, attention_c, grads_c) = results
    assert relative(logits_c, logits) <= EXACT
    assert relative(attention_c, attention) <= EXACT
    scale = max(float(g.norm()) for g in grads.values() if g is not None)
    for name, gradient in grads.items():
        gradient, other = (torch.zeros_like(leaves[name]) if g is None else g for g in (gradient, grads_c[name]))
        if name in ("joint_bias", "score_bias"):  # constants of the softmax: rounding noise in the published form
            assert float(gradient.norm()) <= EXACT * scale and not other.any(), name
        elif shape.L == 1 and name in ("image", "word", "joint", "score", "words"):
            assert max(float(gradient.norm()), float(other.norm())) <= EXACT * scale, name
        else:
            assert relative(other, gradient) <= EXACT, name
    if reset_gate == "official":
        assert grads["u_r"] is None


@by_gate
def test_published_form_follows_the_loops(reset_gate: str) -> None:
    """Eq. (3) with P, b and f_a kept apart, then (7) to (11), all by the loops."""
    shape = SHAPES["tiny"]
    features, words, adjacency, w = published_inputs(shape, bias=True)
    logits, attention = published.published_head(features, words, adjacency, w, steps=3, reset_gate=reset_gate)
    n = {name: numpy_of(t) for name, t in vars(w).items()}
    h0, a = paper_loops.semantic_decoupling(
        features.numpy(),
        words.numpy(),
        n["image"].T,
        n["word"].T,
        n["joint"].T,
        n["joint_bias"],
        n["score"][0],
        float(n["score_bias"][0]),
    )
    D = shape.D
    gates = paper_loops.Gates(
        Wz_in=n["w_z"][:, :D], Wz_out=n["w_z"][:, D:], Uz=n["u_z"], bz=n["b_z"],
        Wr_in=n["w_r"][:, :D], Wr_out=n["w_r"][:, D:], Ur=n["u_r"], br=n["b_r"],
        W_in=n["w_h"][:, :D], W_out=n["w_h"][:, D:], U=n["u_h"], b=n["b_h"],
    )  # fmt: skip
    h_T = paper_loops.graph_propagation(h0, adjacency.numpy(), gates, 3, reset_gate)
    s = paper_loops.label_scores(h_T, h0, n["output"], n["output_bias"], n["classifier"], n["classifier_bias"])
    assert relative(attention, torch.from_numpy(a)) <= EXACT
    assert relative(logits, torch.from_numpy(s)) <= EXACT
    assert relative(torch.sigmoid(logits), torch.from_numpy(paper_loops.probabilities(s))) <= EXACT
