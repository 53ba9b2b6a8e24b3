"""The exact identities the fused head rests on, each in float64 against the scalar loops or the unfused equations.

1 score collapse, 2 pool as a product, 3 two products a step, 4 low-rank first step, 5 split output layer, 6 weight
gradients as one product.  The left sides are the paper's equations; the right sides are what the kernels compute.
"""

from __future__ import annotations

import paper_loops
import pytest
import shapes
import torch
from equations import by_gate, gates_of, relative
from shapes import SHAPES
from torch import Tensor

from ssgrl_fast import reference

EXACT = 1e-12


def test_identity_1_score_collapse() -> None:
    """e = sum_k p_k tanh(u_k v_k) with p = P w_a, and the gradients of P, w_a and the constants through it."""
    shape, J = SHAPES["tiny"], 4
    g = shapes.generator(1)
    features, words = shapes.normal(g, shape.B, shape.L, shape.D), shapes.normal(g, shape.C, 5)
    U, V = shapes.normal(g, shape.D, shape.K), shapes.normal(g, 5, shape.K)
    P, b, w_a, b_a = (
        t.requires_grad_()
        for t in (shapes.normal(g, shape.K, J), shapes.normal(g, J), shapes.normal(g, J), shapes.normal(g, 1))
    )
    u, v = features @ U, words @ V
    fused = torch.tanh(u[:, None] * v[None, :, None]) @ P + b  # (3)
    written = torch.softmax(fused @ w_a + b_a, dim=2)  # (4), (5)

    p = (P @ w_a).detach().requires_grad_()
    pooled, attention = reference.semantic_attention(u, v, p, features)
    assert relative(attention.detach(), written.detach()) <= EXACT
    loop_pooled, loop_attention = paper_loops.semantic_decoupling(
        features.numpy(),
        words.numpy(),
        U.numpy(),
        V.numpy(),
        *(t.detach().numpy() for t in (P, b, w_a)),
        float(b_a.detach()),
    )
    assert relative(attention.detach(), torch.from_numpy(loop_attention)) <= EXACT
    assert relative(pooled.detach(), torch.from_numpy(loop_pooled)) <= EXACT

    upstream = shapes.normal(g, *written.shape)
    dP, db, dw_a, db_a = torch.autograd.grad(written, (P, b, w_a, b_a), upstream)
    (dp,) = torch.autograd.grad(attention, p, upstream)
    assert relative(torch.outer(dp, w_a.detach()), dP) <= EXACT
    assert relative(P.detach().T @ dp, dw_a) <= EXACT
    scale = float(dP.norm())
    assert float(db.norm()) <= EXACT * scale and float(db_a.norm()) <= EXACT * scale


def test_identity_2_pool_as_a_product() -> None:
    inputs = shapes.semantic_attention_inputs(SHAPES["odd"])
    pooled, attention = reference.semantic_attention(**inputs)
    spread = attention[..., None] * inputs["features"][:, None]  # [B, C, L, D]
    assert relative(pooled, spread.sum(2)) <= EXACT
    assert relative(torch.bmm(attention, inputs["features"]), spread.sum(2)) <= EXACT


def two_products_a_step(inputs: dict[str, Tensor | None], steps: int, reset_gate: str) -> tuple[Tensor, Tensor]:
    """h^T and the buffer X [T, B C, 4 D] = [h | A h | A' h | r h] of identity 3."""
    h, A = inputs["h0"], inputs["adjacency"]
    B, C, D = h.shape
    weight_zr = inputs["weight_zr"].clone()
    if reset_gate == "official":
        weight_zr[D:, :D] = weight_zr[:D, :D]  # the repeated block
    X = torch.full((steps, B * C, 4 * D), float("nan"), dtype=torch.float64)
    for t in range(steps):
        X[t, :, :D] = h.reshape(B * C, D)
        X[t, :, D : 2 * D] = (A @ h).reshape(B * C, D)
        X[t, :, 2 * D : 3 * D] = (A.T @ h).reshape(B * C, D)
        z, r = torch.sigmoid(X[t, :, : 3 * D] @ weight_zr.T + inputs["bias_zr"]).chunk(2, 1)
        X[t, :, 3 * D :] = r * X[t, :, :D]
        candidate = torch.tanh(X[t, :, D:] @ inputs["weight_h"].T + inputs["bias_h"])
        h = ((1 - z) * X[t, :, :D] + z * candidate).view(B, C, D)
    return h, X


@by_gate
@pytest.mark.parametrize("name", ["tiny", "isolated", "one_class"])
def test_identity_3_two_products_a_step(name: str, reset_gate: str) -> None:
    inputs = shapes.graph_propagation_inputs(SHAPES[name])
    h, _ = two_products_a_step(inputs, 3, reset_gate)
    loop = paper_loops.graph_propagation(
        inputs["h0"].numpy(), inputs["adjacency"].numpy(), gates_of(inputs), 3, reset_gate
    )
    assert relative(h, torch.from_numpy(loop)) <= EXACT
    assert relative(reference.graph_propagation(**inputs, reset_gate=reset_gate), h) <= EXACT


@pytest.mark.parametrize("name", ["few_locations", "many_locations"])
def test_identity_4_low_rank_first_step(name: str) -> None:
    """The first step with every product but U (r h0) taken on the L rows of F, forward and weight gradients."""
    shape = SHAPES[name]
    inputs = shapes.graph_propagation_inputs(shape, factors=True)
    a, F, A, D = inputs["attention"], inputs["features"], inputs["adjacency"], shape.D
    h0 = a @ F
    routes = (a, A @ a, A.T @ a)  # M a for M in {I, A, A'}
    zr, h = inputs["weight_zr"], inputs["weight_h"]
    for i, (M, Ma) in enumerate(zip((torch.eye(shape.C, dtype=torch.float64), A, A.T), routes, strict=True)):
        W = zr[:, i * D : (i + 1) * D]
        assert relative(Ma @ (F @ W.T), M @ h0 @ W.T) <= EXACT
        dG = shapes.normal(shapes.generator(i), shape.B, shape.C, 2 * D)
        written = torch.einsum("bcg,bcd->gd", dG, M @ h0)
        low_rank = torch.einsum("blg,bld->gd", Ma.mT @ dG, F)
        assert relative(low_rank, written) <= EXACT

    gates = sum(Ma @ (F @ zr[:, i * D : (i + 1) * D].T) for i, Ma in enumerate(routes)) + inputs["bias_zr"]
    z, r = torch.sigmoid(gates).chunk(2, -1)
    candidate = sum(Ma @ (F @ h[:, i * D : (i + 1) * D].T) for i, Ma in enumerate(routes[1:])) + inputs["bias_h"]
    state = (1 - z) * h0 + z * torch.tanh(candidate + (r * h0) @ h[:, 2 * D :].T)
    assert relative(reference.graph_propagation(**inputs, steps=1), state) <= EXACT


def test_identity_4_gradient_reaches_the_factors_and_not_the_product() -> None:
    """d(attention) and d(features) of the low-rank route equal those through h0 = attention @ features."""
    inputs = shapes.graph_propagation_inputs(SHAPES["few_locations"], factors=True)
    a, F = (inputs[n].clone().requires_grad_() for n in ("attention", "features"))
    cached = inputs["h0"].clone().requires_grad_()
    upstream = shapes.normal(shapes.generator(4), *cached.shape)
    factored = inputs | {"h0": cached, "attention": a, "features": F}
    mine = torch.autograd.grad(reference.graph_propagation(**factored), (a, F, cached), upstream, allow_unused=True)
    plain = inputs | {"h0": a @ F, "attention": None, "features": None}
    truth = torch.autograd.grad(reference.graph_propagation(**plain), (a, F), upstream)
    assert mine[2] is None or not mine[2].any()
    assert relative(mine[0], truth[0]) <= EXACT
    assert relative(mine[1], truth[1]) <= EXACT


def test_identity_5_split_output_layer_and_fused_classifier() -> None:
    shape = SHAPES["tiny"]
    inputs = shapes.label_scores_inputs(shape, factors=True)
    Wa, Wb = inputs["weight_o"].chunk(2, 1)
    a, F = inputs["attention"], inputs["features"]
    loop = torch.from_numpy(
        paper_loops.label_scores(
            *(inputs[n].numpy() for n in ("h_T", "h0", "weight_o", "bias_o", "weight_c", "bias_c"))
        )
    )
    low_rank_half = a @ (F @ Wb.T)
    for first_half in (inputs["h0"] @ Wb.T, low_rank_half):
        o = torch.tanh(inputs["h_T"] @ Wa.T + first_half + inputs["bias_o"])
        assert relative((o * inputs["weight_c"]).sum(-1) + inputs["bias_c"], loop) <= EXACT
    assert relative(reference.label_scores(**inputs), loop) <= EXACT


@by_gate
@pytest.mark.parametrize("low_rank", [False, True], ids=["rows_of_all_steps", "first_step_on_L_rows"])
def test_identity_6_weight_gradients_as_one_product(reset_gate: str, low_rank: bool) -> None:
    """dW = dG' X over the rows of all steps, or over those of steps 2 to T plus the L-row products of step 1."""
    shape, steps = SHAPES["few_locations"], 3
    inputs = shapes.graph_propagation_inputs(shape, factors=True)
    a, F, A, D = inputs["attention"], inputs["features"], inputs["adjacency"], shape.D
    leaves = {n: inputs[n].clone().requires_grad_() for n in ("weight_zr", "weight_h")}
    upstream = shapes.normal(shapes.generator(6), shape.B, shape.C, D)
    truth = torch.autograd.grad(
        reference.graph_propagation(**inputs | leaves, reset_gate=reset_gate), list(leaves.values()), upstream
    )

    plain = inputs | {"h0": a @ F}
    _, X = two_products_a_step(plain, steps, reset_gate)
    d_zr, d_h = gate_gradients(plain, X, upstream, reset_gate)
    if low_rank:
        mine_zr = torch.einsum("tng,tnx->gx", d_zr[1:], X[1:, :, : 3 * D])
        mine_h = torch.einsum("tng,tnx->gx", d_h[1:], X[1:, :, D:])
        first_zr, first_h = d_zr[0].view(shape.B, shape.C, -1), d_h[0].view(shape.B, shape.C, -1)
        for i, Ma in enumerate((a, A @ a, A.T @ a)):
            mine_zr[:, i * D : (i + 1) * D] += torch.einsum("blg,bld->gd", Ma.mT @ first_zr, F)
            if i:
                mine_h[:, (i - 1) * D : i * D] += torch.einsum("blg,bld->gd", Ma.mT @ first_h, F)
        mine_h[:, 2 * D :] += d_h[0].T @ X[0, :, 3 * D :]
    else:
        mine_zr = d_zr.flatten(0, 1).T @ X[:, :, : 3 * D].flatten(0, 1)
        mine_h = d_h.flatten(0, 1).T @ X[:, :, D:].flatten(0, 1)
    if reset_gate == "official":
        mine_zr[:D, :D] += mine_zr[D:, :D]
        mine_zr[D:, :D] = 0
    assert relative(mine_zr, truth[0]) <= EXACT
    assert relative(mine_h, truth[1]) <= EXACT


def gate_gradients(
    inputs: dict[str, Tensor | None], X: Tensor, upstream: Tensor, reset_gate: str
) -> tuple[Tensor, Tensor]:
    """The gradients before sigma [T, B C, 2 D] and tanh [T, B C, D] of every step, by autograd a step at a time."""
    B, C, D = upstream.shape
    zr_steps, h_steps, d_next = [], [], upstream
    for t in reversed(range(X.shape[0])):
        h = X[t, :, :D].view(B, C, D).clone().requires_grad_()
        weight_zr = inputs["weight_zr"].clone()
        if reset_gate == "official":
            weight_zr[D:, :D] = weight_zr[:D, :D]
        messages = torch.cat([inputs["adjacency"] @ h, inputs["adjacency"].T @ h], -1)
        before_zr = torch.cat([h, messages], -1) @ weight_zr.T + inputs["bias_zr"]
        z, r = torch.sigmoid(before_zr).chunk(2, -1)
        before_h = torch.cat([messages, r * h], -1) @ inputs["weight_h"].T + inputs["bias_h"]
        after = (1 - z) * h + z * torch.tanh(before_h)
        d_h, d_zr, d_candidate = torch.autograd.grad(after, (h, before_zr, before_h), d_next)
        zr_steps.insert(0, d_zr.flatten(0, 1))
        h_steps.insert(0, d_candidate.flatten(0, 1))
        d_next = d_h
    return torch.stack(zr_steps), torch.stack(h_steps)
