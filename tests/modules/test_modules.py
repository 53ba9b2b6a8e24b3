"""The head's modules: held to the published form of the equations in both modes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from published_weights import published_weights
from torch import Tensor

import ssgrl_fast as sf
from ssgrl_fast import BackendUnavailable
from ssgrl_fast.modules import ClassRows, GraphPropagation, LabelClassifier, SemanticDecoupling, SSGRLHead
from ssgrl_fast.reference.published import published_attention, published_head

B, C, D, S, K, M, OUT, H, W = 2, 5, 12, 7, 9, 4, 10, 3, 4
MODES = ("paper", "official")


def make_head(mode: str = "paper", dtype: torch.dtype = torch.float64, **options: Any) -> SSGRLHead:
    torch.manual_seed(0)
    words, adjacency = torch.randn(C, S, dtype=torch.float64), torch.rand(C, C, dtype=torch.float64)
    given = {"joint_dim": K, "attention_dim": M, "out_dim": OUT, **options}
    return SSGRLHead(D, words, adjacency, mode=mode, **given).to(dtype)


def make_map(dtype: torch.dtype = torch.float64, batch: int = B, width: int = W) -> Tensor:
    exact = torch.float32 if dtype == torch.bfloat16 else dtype  # the reduced dtypes see the rounded float32 map
    return torch.randn(batch, D, H, width, dtype=exact, generator=torch.Generator().manual_seed(1)).to(dtype)


def error(result: Tensor, truth: Tensor) -> float:
    return ((result - truth).norm() / truth.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("width", [1, W], ids=["low_rank", "full_rank"])
@pytest.mark.parametrize("mode", MODES)
def test_head_equals_published_form(mode: str, width: int) -> None:
    head, x = make_head(mode), make_map(width=width).requires_grad_()
    weights = published_weights(head)
    rows = x.detach().permute(0, 2, 3, 1).reshape(B, H * width, D).requires_grad_()
    truth, truth_attention = published_head(rows, head.words, head.adjacency, weights, reset_gate=mode)
    logits, attention = head(x, return_attention=True)
    assert attention.shape == (B, C, H, width)
    assert error(logits, truth) <= 1e-12
    assert error(attention.flatten(2), truth_attention) <= 1e-12

    seed = torch.randn(B, C, dtype=torch.float64)
    (logits * seed).sum().backward()
    (truth * seed).sum().backward()
    assert rows.grad is not None and x.grad is not None
    assert error(x.grad.permute(0, 2, 3, 1).reshape(B, H * width, D), rows.grad) <= 1e-12
    graph = head.graph_propagation
    assert graph is not None
    zr, h = graph.weight_zr.grad, graph.weight_h.grad
    assert zr is not None and h is not None
    decoupling, classifier = head.semantic_decoupling, head.classifier
    pairs = {
        "image": decoupling.weight_u.grad,
        "word": decoupling.weight_v.grad,
        "joint": decoupling.weight_p.grad,
        "score": decoupling.weight_a.grad,
        **{"w_z": zr[:D, D:], "u_z": zr[:D, :D], "w_r": zr[D:, D:], "w_h": h[:, : 2 * D], "u_h": h[:, 2 * D :]},
        **{"output": classifier.weight_o.grad, "output_bias": classifier.bias_o.grad},
        **{"classifier": classifier.weight_c.grad, "classifier_bias": classifier.bias_c.grad},
    }
    if mode == "paper":
        pairs["u_r"] = zr[D:, :D]
    else:
        assert graph.bias_zr is not None and graph.bias_zr.grad is not None and graph.bias_h is not None
        pairs |= {"b_z": graph.bias_zr.grad[:D], "b_r": graph.bias_zr.grad[D:], "b_h": graph.bias_h.grad}
    for name, gradient in pairs.items():
        expected = getattr(weights, name).grad
        assert gradient is not None and error(gradient.reshape(expected.shape), expected) <= 1e-11, name


@pytest.mark.parametrize("mode", MODES)
def test_reset_gate_block(mode: str) -> None:
    head = make_head(mode)
    head(make_map()).sum().backward()
    graph = head.graph_propagation
    assert graph is not None and graph.weight_zr.grad is not None
    block = graph.weight_zr.grad[D:, :D]
    if mode == "official":
        assert torch.equal(block, torch.zeros_like(block))
        before = head(make_map())
        with torch.no_grad():
            graph.gates()["U_r"].fill_(100.0)
        assert torch.equal(before, head(make_map()))
    else:
        assert bool((block != 0).any(dim=1).all())


def test_modes_differ_in_biases_only_where_printed() -> None:
    paper, official = make_head("paper"), make_head("official")
    assert {name for name, _ in official.named_parameters()} - {name for name, _ in paper.named_parameters()} == {
        "graph_propagation.bias_zr",
        "graph_propagation.bias_h",
    }
    assert GraphPropagation(D, bias=True).bias_zr is not None
    assert GraphPropagation(D, reset_gate="official", bias=False).bias_h is None


def test_constants_get_exact_zero_gradients() -> None:
    head, x = make_head(), make_map()
    decoupling = head.semantic_decoupling
    before = head(x)
    before.sum().backward()
    for parameter in (decoupling.bias_p, decoupling.bias_a):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    with torch.no_grad():
        decoupling.bias_p.fill_(float("nan"))
        decoupling.bias_a.fill_(float("inf"))
    head.zero_grad()
    after = head(x)
    assert torch.equal(before, after)
    after.sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_layouts_of_the_map(layout: str) -> None:
    head, x = make_head(), make_map()
    if layout == "channels_last":
        laid = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        wide = torch.full((B, 2 * D, H, 2 * W), float("nan"), dtype=x.dtype)
        laid = wide[:, ::2, :, ::2].copy_(x)
    else:
        laid = x
    logits, attention = head(laid, return_attention=True)
    truth, truth_attention = head(x, return_attention=True)
    assert error(logits, truth) <= 1e-14 and error(attention, truth_attention) <= 1e-14


def test_decoupling_takes_rows_or_map() -> None:
    head, x = make_head(), make_map()
    rows = x.permute(0, 2, 3, 1).reshape(B, H * W, D)
    pooled, attention = head.semantic_decoupling(x, head.words)
    pooled_rows, attention_rows = head.semantic_decoupling(rows, head.words)
    assert error(pooled, pooled_rows) <= 1e-14 and error(attention, attention_rows) <= 1e-14
    truth, _ = published_attention(rows, head.words, published_weights(head))
    assert error(pooled, truth) <= 1e-12


def test_attention_lies_on_the_map_as_the_features_do() -> None:
    head, x = make_head(), make_map()
    pooled, _ = head.semantic_decoupling(x, head.words)
    _, attention = head(x, return_attention=True)
    assert error(torch.einsum("bchw,bdhw->bcd", attention, x), pooled) <= 1e-12


def test_without_interaction_each_class_reads_its_own_feature() -> None:
    head, x = make_head(interaction=False, out_dim=None), make_map()
    assert not any(name.startswith("graph_propagation") for name in head.state_dict())
    pooled, _ = head.semantic_decoupling(x, head.words)
    assert isinstance(head.classifier, ClassRows)
    weight, bias = head.classifier.weight_c, head.classifier.bias_c
    truth = torch.stack([torch.mv(pooled[:, c], weight[c]) + bias[c] for c in range(C)], dim=1)
    assert error(head(x), truth) <= 1e-14
    with torch.no_grad():
        head.adjacency.fill_(9.0)
    assert error(head(x), truth) <= 1e-14


@pytest.mark.parametrize(("width", "exports", "expected"), [(1, False, True), (2, False, False), (2, True, True)])
@pytest.mark.parametrize("operation", ["graph_propagation", "label_scores"])
def test_head_hands_on_the_factors(
    operation: str, width: int, exports: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where identity 4 pays: on 3 locations (3 · (5 + 12) < 5 · 12), not on 6; exported for all sizes, always."""
    head, x, seen = make_head(), make_map(width=width), []
    original = getattr(sf.functional, operation)

    def watch(*args: Any, **options: Any) -> Tensor:
        seen.append(options)
        return original(*args, **options)

    monkeypatch.setattr(sf.functional, operation, watch)
    monkeypatch.setattr("ssgrl_fast.modules.head.is_exporting", lambda: exports)
    _, attention = head(x, return_attention=True)
    (options,) = seen
    if not expected:
        assert options["attention"] is options["features"] is None
        return
    assert torch.equal(options["attention"], attention.flatten(2))
    assert torch.equal(options["features"], x.permute(0, 2, 3, 1).reshape(B, H * width, D))


def test_factors_take_the_gradient_of_the_state() -> None:
    head, x = make_head(), make_map()
    pooled, attention = head.semantic_decoupling(x, head.words)
    pooled.retain_grad()
    rows = x.permute(0, 2, 3, 1).reshape(B, H * W, D)
    graph, classifier = head.graph_propagation, head.classifier
    assert graph is not None
    h_T = graph(pooled, head.adjacency, attention, rows)
    classifier(h_T, pooled, attention, rows).sum().backward()
    assert pooled.grad is None or not bool(pooled.grad.any())
    grads = {name: p.grad for name, p in head.named_parameters()}
    plain = make_head()
    pooled, attention = plain.semantic_decoupling(x, plain.words)
    assert plain.graph_propagation is not None
    plain.classifier(plain.graph_propagation(pooled, plain.adjacency), pooled).sum().backward()
    for name, parameter in plain.named_parameters():
        if not name.endswith(("bias_p", "bias_a")):
            assert grads[name] is not None and parameter.grad is not None
            assert error(grads[name], parameter.grad) <= 1e-11, name


@pytest.mark.parametrize(("batch", "height", "width"), [(0, 3, 4), (2, 1, 1)])
def test_empty_batch_and_single_location(batch: int, height: int, width: int) -> None:
    head = make_head(dtype=torch.float32)
    x = torch.randn(batch, D, height, width, requires_grad=True)
    logits, attention = head(x, return_attention=True)
    assert logits.shape == (batch, C) and attention.shape == (batch, C, height, width)
    logits.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape and bool(torch.isfinite(x.grad).all())
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in head.parameters())
    if batch:
        assert torch.equal(attention, torch.ones_like(attention))


def test_one_class() -> None:
    head = SSGRLHead(D, torch.randn(1, S), torch.zeros(1, 1), joint_dim=K)
    assert head(make_map(torch.float32)).shape == (B, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("feature_dtype", [torch.float32, torch.bfloat16])
def test_autocast(mode: str, feature_dtype: torch.dtype) -> None:
    head = make_head(mode, torch.float32)
    x = make_map(feature_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert head.semantic_decoupling.collapsed().dtype == torch.float32
        logits, attention = head(x, return_attention=True)
    assert logits.dtype == torch.bfloat16 and attention.dtype == torch.float32
    assert torch.allclose(attention.sum((2, 3)), torch.ones(B, C), atol=1e-5)
    truth = copy.deepcopy(head)(x.detach().float())
    assert error(logits.float(), truth) < 3e-2
    logits.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == feature_dtype
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in head.parameters())


def test_collapsed_vector_is_exact_under_autocast() -> None:
    decoupling = SemanticDecoupling(D, S, 64, 48)
    truth = decoupling.weight_p.double().t() @ decoupling.weight_a.double()
    with torch.autocast("cpu", torch.bfloat16):
        assert error(decoupling.collapsed().double(), truth) <= 1e-6
    reduced = copy.deepcopy(decoupling).bfloat16()
    assert reduced.collapsed().dtype == torch.float32
    assert copy.deepcopy(decoupling).double().collapsed().dtype == torch.float64


def test_reduced_precision_weights() -> None:
    head = make_head(dtype=torch.float32)
    truth = head(make_map(torch.float32))
    reduced = copy.deepcopy(head).bfloat16()
    logits = reduced(make_map(torch.bfloat16))
    assert logits.dtype == torch.bfloat16 and error(logits.float(), truth) < 5e-2


def test_buffers_are_copies_without_gradient() -> None:
    words, adjacency = torch.randn(C, S, requires_grad=True), torch.eye(C, dtype=torch.int64)
    head = SSGRLHead(D, words, adjacency, joint_dim=K)
    assert {"words", "adjacency"} <= set(head.state_dict())
    assert head.words.dtype == head.adjacency.dtype == torch.float32 and not head.words.requires_grad
    kept = head.words.clone()
    with torch.no_grad():
        words.zero_()
    assert torch.equal(head.words, kept)
    head(make_map(torch.float32)).sum().backward()
    assert words.grad is None


def test_initial_weights_follow_each_published_layer() -> None:
    torch.manual_seed(3)
    dim = 96
    graph = GraphPropagation(dim, reset_gate="official")
    for name, block in graph.gates().items():
        check_uniform(block, 2 * dim if name.startswith("W") else dim)
    assert graph.bias_zr is not None and graph.bias_h is not None
    limit = 1 / math.sqrt(2 * dim) + 1 / math.sqrt(dim)
    for bias in (graph.bias_zr, graph.bias_h):
        assert 1 / math.sqrt(dim) < bias.abs().max() <= limit
    apart = (graph.bias_zr[:dim] - graph.bias_zr[dim:]).abs().max()
    assert apart <= 2 / math.sqrt(2 * dim)  # both share the bias of U^z, as in the published code
    decoupling, classifier = SemanticDecoupling(dim, 50, 80, 60), LabelClassifier(70, dim, 90)
    check_uniform(decoupling.weight_u, dim)
    check_uniform(decoupling.weight_v, 50)
    check_uniform(decoupling.weight_p, 80)
    check_uniform(classifier.weight_o, 2 * dim)
    check_uniform(classifier.weight_c, 90)
    assert decoupling.weight_a.abs().max() <= 1 / math.sqrt(60)


def check_uniform(tensor: Tensor, fan_in: int) -> None:
    bound = 1 / math.sqrt(fan_in)
    assert 0.98 * bound < tensor.abs().max() <= bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_compiles_as_one_graph() -> None:
    head, x = make_head("official", torch.float32), make_map(torch.float32)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    logits = compiled(x)
    assert error(logits, head(x)) <= 1e-6
    logits.sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_named_backend() -> None:
    head, x = make_head(backend="reference"), make_map()
    assert error(head(x), make_head()(x)) <= 1e-12
    with pytest.raises((BackendUnavailable, ValueError), match="no_such_backend"):
        make_head(backend="no_such_backend")(x)
    with sf.use_backend("reference"):
        assert torch.equal(make_head()(x), head(x))


def test_deepcopy_and_state_dict_give_the_same_head() -> None:
    head, x = make_head("official"), make_map()
    other = SSGRLHead(D, torch.zeros(C, S), torch.zeros(C, C), **head.options).double()
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(x), head(x)) and torch.equal(copy.deepcopy(head)(x), head(x))
