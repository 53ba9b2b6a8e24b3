"""graph_propagation on every backend, dtype, variant and named shape: h_T and every gradient against float64.

Variants: h0 or its factors, both reset gates, with and without biases, packed weights or the nine stored blocks.
"""

from __future__ import annotations

import operations
import pytest
import shapes
import torch
from operations import PLAIN, PROPAGATION_VARIANTS, Variant, assert_within_budget, by_backend, compare
from shapes import LAYOUTS, SHAPES, Inputs, Shape

from ssgrl_fast import functional

STEM = "graph_propagation"
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
by_exact_dtype = pytest.mark.parametrize("dtype", [F64, F32], ids=str)
by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=shapes.shape_id)
by_variant = pytest.mark.parametrize("variant", PROPAGATION_VARIANTS, ids=str)
POOL_SEEDS = 16  # x 15 shapes or more: over 4,096 elements of a bias


@by_backend
@by_exact_dtype
@by_shape
@by_variant
def test_parity(variant: Variant, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    assert_within_budget(STEM, dtype, [compare(STEM, shape, dtype, backend, variant)])


@by_backend
@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "variant", [PLAIN, Variant(True, "official", True, True), Variant(False, "official", False, False)], ids=str
)
def test_parity_reduced(variant: Variant, dtype: torch.dtype, backend: str) -> None:
    """Pooled over all named shapes and several seeds; the saturated one's gradients underflow in float16."""
    operations.skip_unless_it_runs(backend, dtype)
    pool = [s for s in SHAPES.values() if dtype == BF16 or not s.saturated]
    assert_within_budget(
        STEM, dtype, [compare(STEM, s, dtype, backend, variant, seed) for s in pool for seed in range(POOL_SEEDS)]
    )


@by_backend
@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("variant", [PLAIN, Variant(factors=True), Variant(factors=True, bias=False)], ids=str)
def test_inference_in_half(variant: Variant, dtype: torch.dtype, backend: str) -> None:
    """Where no gradient is asked for, other kernels may run: widths that are whole vectors and others, with and without
    the low-rank first step, one step and more."""
    operations.skip_unless_it_runs(backend, dtype)
    names = ("odd", "on_tile", "few_locations", "many_locations", "no_edges", "one_step", "five_steps")
    found = []
    for shape in (SHAPES[name] for name in names):
        call = operations.fused(STEM, variant, shape.T, backend)
        for seed in range(4):
            expected = operations.expected_results(STEM, shape, dtype, variant, seed, None)
            with torch.no_grad():
                (h_T,) = call(expected.inputs)
            plain = {"h_T": expected.plain["h_T"]}
            found.append(operations.Comparison({"h_T": h_T}, {"h_T": expected.truth["h_T"]}, plain))
    assert_within_budget(STEM, dtype, found)


@pytest.mark.thorough
@by_backend
@pytest.mark.parametrize("shape", shapes.WIDE.values(), ids=shapes.shape_id)
@pytest.mark.parametrize("variant", [Variant(factors=True), Variant(True, "official", True, True), PLAIN], ids=str)
def test_parity_bfloat16_with_and_without_identity_4(variant: Variant, shape: Shape, backend: str) -> None:
    """Pools of one shape each, so that no other form of the products hides this one's error."""
    assert shapes.low_rank_pays(shape) == (shape.name == "wide_low_rank")
    assert_within_budget(STEM, BF16, [compare(STEM, shape, BF16, backend, variant, seed) for seed in range(16)])


@by_backend
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize(
    "shape", [SHAPES[n] for n in ("tiny", "odd", "few_locations", "one_class", "empty_batch")], ids=shapes.shape_id
)
@by_variant
def test_poisoned_memory(variant: Variant, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    operations.assert_poisoned_memory_changes_nothing(STEM, shape, dtype, backend, variant)


@by_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [SHAPES[n] for n in ("odd", "one_class", "few_locations")], ids=shapes.shape_id)
@pytest.mark.parametrize("variant", [PLAIN, Variant(factors=True), Variant(True, "official", True, True)], ids=str)
def test_parity_in_any_layout(variant: Variant, shape: Shape, layout: str, backend: str) -> None:
    """Strided inputs in rooms full of NaN: what lies between the elements is never read."""
    assert_within_budget(STEM, F32, [compare(STEM, shape, F32, backend, variant, layout=layout)])


def expanded(inputs: Inputs) -> Inputs:
    """Stride 0: one image's state for the whole batch, one bias for all channels, one row for the whole adjacency."""
    return inputs | {
        "h0": inputs["h0"][:1].expand(3, -1, -1),
        "adjacency": inputs["adjacency"][:1].expand(7, -1),
        "bias_h": inputs["bias_h"][:1].expand(17),
        "weight_h": inputs["weight_h"][:1].expand(17, -1),
    }


@by_backend
def test_expanded_inputs(backend: str) -> None:
    assert_within_budget(STEM, F32, [compare(STEM, SHAPES["odd"], F32, backend, change=expanded)])


@by_backend
@pytest.mark.parametrize("dtype", [F32, torch.float16], ids=str)
@pytest.mark.parametrize("factors", [False, True], ids=["h0", "factors"])
@pytest.mark.parametrize("name", ["one_step", "few_locations"])
def test_an_upstream_gradient_in_any_layout_is_read_and_kept(
    name: str, factors: bool, dtype: torch.dtype, backend: str
) -> None:
    operations.skip_unless_it_runs(backend, dtype)
    shape, variant = SHAPES[name], Variant(factors=factors)
    leaves = operations.leaves_of(operations.inputs_of(STEM, shape, dtype, variant=variant))
    inputs = [t for n, t in leaves.items() if t is not None and t.requires_grad and not (factors and n == "h0")]
    (h_T,) = operations.fused(STEM, variant, shape.T, backend)(leaves)
    turned = torch.randn(h_T.shape[::-1], generator=torch.Generator().manual_seed(0)).to(h_T).permute(2, 1, 0)
    for grad in (turned, turned[:1, :1, :1].expand(h_T.shape)):
        flat, before = grad.contiguous(), grad.clone()
        found, expected = (torch.autograd.grad(h_T, inputs, g, retain_graph=True) for g in (grad, flat))
        assert torch.equal(grad, before) and torch.equal(flat, before)
        assert all(map(torch.equal, found, expected))


@by_backend
@pytest.mark.parametrize("factors", [False, True], ids=["h0", "factors"])
def test_missing_one_bias_is_a_bias_of_zeros(factors: bool, backend: str) -> None:
    variant = Variant(factors=factors)
    inputs = operations.inputs_of(STEM, SHAPES["odd"], F64, variant=variant)
    call = operations.fused(STEM, variant, 3, backend)
    for name in ("bias_zr", "bias_h"):
        zeros = inputs | {name: torch.zeros_like(inputs[name])}
        assert torch.equal(call(inputs | {name: None})[0], call(zeros)[0]), name
        leaves = operations.leaves_of(inputs | {name: None})
        call(leaves)[0].square().sum().backward()
        filled = operations.leaves_of(zeros)
        call(filled)[0].square().sum().backward()
        for other, leaf in leaves.items():
            if leaf is not None and leaf.grad is not None:
                assert torch.equal(leaf.grad, filled[other].grad), other


@by_backend
@pytest.mark.parametrize("missing", ["b_z", "b_r", "b_h"])
def test_missing_one_stored_bias_is_a_bias_of_zeros(missing: str, backend: str) -> None:
    variant = Variant(blocks=True)
    inputs = operations.inputs_of(STEM, SHAPES["odd"], F64, variant=variant)
    call = operations.fused(STEM, variant, 3, backend)
    assert torch.equal(
        call(inputs | {missing: None})[0], call(inputs | {missing: torch.zeros_like(inputs[missing])})[0]
    )


@by_backend
@pytest.mark.parametrize("blocks", [False, True], ids=["packed", "blocks"])
def test_official_gate_never_reads_the_reset_gates_own_state_weight(blocks: bool, backend: str) -> None:
    """D1: U^r may hold anything, NaN included; it gets a gradient of zeros."""
    variant = Variant(reset_gate="official", blocks=blocks)
    inputs = operations.inputs_of(STEM, SHAPES["odd"], F32, variant=variant)
    D = 17
    poisoned = {n: None if t is None else t.clone() for n, t in inputs.items()}
    if blocks:
        poisoned["u_r"].fill_(float("nan"))
    else:
        poisoned["weight_zr"][D:, :D] = float("nan")
    call = operations.fused(STEM, variant, 3, backend)
    clean = call(inputs)[0]
    leaves = operations.leaves_of(poisoned)
    (h_T,) = call(leaves)
    assert torch.equal(h_T, clean)
    h_T.square().sum().backward()
    own = leaves["u_r"].grad if blocks else leaves["weight_zr"].grad[D:, :D]
    assert not own.any()
    assert all(torch.isfinite(t.grad).all() for t in leaves.values() if t is not None and t.grad is not None)


@by_backend
def test_isolated_classes_hear_nothing(backend: str) -> None:
    """Without edges a class's state depends on no other class, in either direction."""
    shape = SHAPES["isolated"]
    inputs = operations.inputs_of(STEM, shape, F64)
    leaves = operations.leaves_of(inputs, needs=("h0",))
    (h_T,) = operations.fused(STEM, PLAIN, 3, backend)(leaves)
    for c in shape.isolated:
        (gradient,) = torch.autograd.grad(h_T[:, c].sum(), leaves["h0"], retain_graph=True)
        others = [n for n in range(shape.C) if n != c]
        assert gradient[:, c].any() and not gradient[:, others].any()
        alone = inputs | {"h0": inputs["h0"][:, c : c + 1], "adjacency": torch.zeros(1, 1, dtype=F64)}
        assert torch.allclose(
            operations.fused(STEM, PLAIN, 3, backend)(alone)[0][:, 0], h_T[:, c], rtol=1e-12, atol=1e-14
        )


@by_backend
def test_direction_of_the_messages(backend: str) -> None:
    """W_in meets A h: with the single edge a[0, 1] and no W_out, class 0 hears class 1 and class 1 hears nobody."""
    inputs = operations.inputs_of(STEM, SHAPES["tiny"], F64)
    D = 4
    edge = torch.zeros(3, 3, dtype=F64)
    edge[0, 1] = 1.0
    inward_only = {n: None if t is None else t.clone() for n, t in inputs.items()} | {"adjacency": edge}
    inward_only["weight_zr"][:, 2 * D :] = 0.0
    inward_only["weight_h"][:, D : 2 * D] = 0.0
    leaves = operations.leaves_of(inward_only, needs=("h0",))
    (h_T,) = operations.fused(STEM, PLAIN, 1, backend)(leaves)
    heard = torch.stack(
        [torch.autograd.grad(h_T[:, c].sum(), leaves["h0"], retain_graph=True)[0].abs().sum((0, 2)) for c in range(3)]
    )
    assert (heard > 0).tolist() == [[True, True, False], [False, True, False], [False, False, True]]


@by_backend
@pytest.mark.parametrize("low_rank", [True, False], ids=["few_locations", "many_locations"])
def test_factors_and_their_product_give_the_same_states(low_rank: bool, backend: str) -> None:
    """On both sides of L = C D / (C + D)."""
    shape = SHAPES["few_locations" if low_rank else "many_locations"]
    assert shapes.low_rank_pays(shape) == low_rank
    inputs = operations.inputs_of(STEM, shape, F64, variant=Variant(factors=True))
    product = inputs | {"attention": None, "features": None}
    with_factors = functional.graph_propagation(**inputs, backend=backend)
    assert torch.allclose(
        with_factors, functional.graph_propagation(**product, backend=backend), rtol=1e-11, atol=1e-12
    )
