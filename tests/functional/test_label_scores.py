"""label_scores on every backend, dtype and named shape: logits and every gradient against float64."""

from __future__ import annotations

from dataclasses import replace

import operations
import pytest
import shapes
import torch
from operations import PLAIN, SCORES_VARIANTS, Variant, assert_within_budget, by_backend, compare
from shapes import LAYOUTS, SHAPES, Shape

from ssgrl_fast import functional

STEM = "label_scores"
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
by_exact_dtype = pytest.mark.parametrize("dtype", [F64, F32], ids=str)
by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=shapes.shape_id)
by_variant = pytest.mark.parametrize("variant", SCORES_VARIANTS, ids=str)
POOL_SEEDS = 20  # x 15 shapes or more: over 4,096 elements of bias_o


@by_backend
@by_exact_dtype
@by_shape
@by_variant
def test_parity(variant: Variant, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    assert_within_budget(STEM, dtype, [compare(STEM, shape, dtype, backend, variant)])


@by_backend
@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@by_variant
def test_parity_reduced(variant: Variant, dtype: torch.dtype, backend: str) -> None:
    """Pooled over all named shapes and several seeds; the saturated one's gradients underflow in float16."""
    operations.skip_unless_it_runs(backend, dtype)
    pool = [s for s in SHAPES.values() if dtype == BF16 or not s.saturated]
    comparisons = [compare(STEM, s, dtype, backend, variant, seed) for s in pool for seed in range(POOL_SEEDS)]
    assert_within_budget(STEM, dtype, comparisons)


INFERENCE = [SHAPES[name] for name in ("odd", "on_tile", "few_locations", "many_locations", "one_class")]
INFERENCE += [replace(shape, B=7) for shape in shapes.WIDE.values()]


def infer(variant: Variant, inputs: shapes.Inputs, backend: str) -> torch.Tensor:
    """The logits where no gradient is asked for, when other kernels may run."""
    with torch.no_grad():
        return operations.fused(STEM, variant, 0, backend)(inputs)[0]


@by_backend
@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@by_variant
def test_inference_in_half(variant: Variant, dtype: torch.dtype, backend: str) -> None:
    """Widths that are whole vectors and others, with and without identity 4; scratch that starts as NaN changes no bit,
    and a second call repeats the first."""
    operations.skip_unless_it_runs(backend, dtype)
    found = []
    for shape in INFERENCE:
        for seed in range(7):
            expected = operations.expected_results(STEM, shape, dtype, variant, seed, None)
            logits = infer(variant, expected.inputs, backend)
            with operations.poisoned_memory():
                poisoned = infer(variant, expected.inputs, backend)
            assert torch.equal(operations.bits(logits), operations.bits(poisoned))
            plain = {"logits": expected.plain["logits"]}
            found.append(operations.Comparison({"logits": logits}, {"logits": expected.truth["logits"]}, plain))
    assert_within_budget(STEM, dtype, found)


@by_backend
@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("factors", [False, True], ids=["h0", "factors"])
def test_what_is_not_finite_stays_in_its_row(factors: bool, value: float, dtype: torch.dtype, backend: str) -> None:
    """In inference: a state of one class of one image changes that logit alone."""
    operations.skip_unless_it_runs(backend, dtype)
    variant = Variant(factors=factors)
    inputs = operations.inputs_of(STEM, SHAPES["few_locations" if factors else "on_tile"], dtype, variant=variant)
    h_T = inputs["h_T"].clone()
    h_T[1, 2, 3] = value
    clean, changed = (infer(variant, inputs | {"h_T": h}, backend) for h in (inputs["h_T"], h_T))
    assert changed[1, 2].isnan() or value == float("inf")
    assert not torch.equal(operations.bits(changed[1, 2]), operations.bits(clean[1, 2]))
    changed[1, 2] = clean[1, 2]
    assert torch.equal(operations.bits(changed), operations.bits(clean))


@by_backend
@pytest.mark.parametrize(
    ("variant", "size"),
    [(Variant(factors=factors), size) for factors in (False, True) for size in (1.0, 10.0, 100.0, 1e4)],
    ids=str,
)
def test_halves_of_any_size_are_added_before_they_are_rounded(variant: Variant, size: float, backend: str) -> None:
    """States of 1 to 10^4 in bfloat16: the halves of f_o cancel in part, so rounding one of them alone loses the sum.

    At 10^4 with factors the rounding of h0 itself leaves no digit of the gradients in any form (relative errors over 1,
    the plain form's too), so only the logits are held.
    """
    operations.skip_unless_it_runs(backend, BF16)

    def change(inputs: shapes.Inputs) -> shapes.Inputs:
        large = inputs | {name: inputs[name] * size for name in ("h_T", "h0", "features") if inputs[name] is not None}
        if variant.factors:  # h0 is their product, rounded once
            large["h0"] = (large["attention"].double() @ large["features"].double()).to(BF16)
        return large

    shape = replace(shapes.WIDE["wide_low_rank"], B=7)
    found = [compare(STEM, shape, BF16, backend, variant, seed, change=change) for seed in range(16)]
    lost = tuple(name for name in found[0].truth if name != "logits") if variant.factors and size == 1e4 else ()
    assert_within_budget(STEM, BF16, found, but=("d_bias_c", *lost))  # d_bias_c is too small to pool


@pytest.mark.thorough
@by_backend
@pytest.mark.parametrize("shape", shapes.WIDE.values(), ids=shapes.shape_id)
@pytest.mark.parametrize("variant", [Variant(factors=True), PLAIN], ids=str)
def test_parity_bfloat16_with_and_without_identity_4(variant: Variant, shape: Shape, backend: str) -> None:
    """Pools of one shape each, so that no other form of the products hides this one's error."""
    assert shapes.low_rank_pays(shape) == (shape.name == "wide_low_rank")
    comparisons = [compare(STEM, replace(shape, B=7), BF16, backend, variant, seed) for seed in range(16)]
    too_small_to_pool = ("d_bias_c",)  # a sum of the logits' gradients
    assert_within_budget(STEM, BF16, comparisons, but=too_small_to_pool)


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
@pytest.mark.parametrize("variant", [PLAIN, Variant(factors=True)], ids=str)
def test_parity_in_any_layout(variant: Variant, shape: Shape, layout: str, backend: str) -> None:
    """Strided inputs in rooms full of NaN: what lies between the elements is never read."""
    assert_within_budget(STEM, F32, [compare(STEM, shape, F32, backend, variant, layout=layout)])


@by_backend
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_an_empty_batch_with_factors(dtype: torch.dtype, backend: str) -> None:
    """B = 0 where identity 4 pays: no logits, in inference too, and gradients of zero."""
    operations.skip_unless_it_runs(backend, dtype)
    shape, variant = replace(SHAPES["few_locations"], B=0), Variant(factors=True)
    inputs = operations.inputs_of(STEM, shape, dtype, variant=variant)
    assert infer(variant, inputs, backend).shape == (0, shape.C)
    found = compare(STEM, shape, dtype, backend, variant).result
    assert found["logits"].shape == (0, shape.C) and not found["d_weight_o"].any() and not found["d_weight_c"].any()


@by_backend
@pytest.mark.parametrize("missing", ["bias_o", "bias_c"])
def test_missing_one_bias_is_a_bias_of_zeros(missing: str, backend: str) -> None:
    inputs = operations.inputs_of(STEM, SHAPES["odd"], F64)
    zeros = inputs | {missing: torch.zeros_like(inputs[missing])}
    without = functional.label_scores(**inputs | {missing: None}, backend=backend)
    assert torch.equal(without, functional.label_scores(**zeros, backend=backend))


@by_backend
def test_classifiers_are_unshared(backend: str) -> None:
    """Eq. (10): class c's score reads row c of weight_c and bias_c, and state c, alone."""
    leaves = operations.leaves_of(operations.inputs_of(STEM, SHAPES["odd"], F64))
    logits = functional.label_scores(**leaves, backend=backend)
    for c in range(7):
        names = ("weight_c", "bias_c")
        for name, gradient in zip(
            names, torch.autograd.grad(logits[:, c].sum(), [leaves[n] for n in names], retain_graph=True), strict=True
        ):
            assert gradient[c].any() and not gradient[[n for n in range(7) if n != c]].any(), name
        (states,) = torch.autograd.grad(logits[:, c].sum(), leaves["h_T"], retain_graph=True)
        assert states[:, c].any() and not states[:, [n for n in range(7) if n != c]].any()


@by_backend
def test_order_of_the_two_states(backend: str) -> None:
    """D5: the first D columns of weight_o meet h_T, the last D meet h0."""
    inputs = operations.inputs_of(STEM, SHAPES["odd"], F64)
    first, second = inputs["weight_o"].chunk(2, 1)
    swapped = inputs | {"h_T": inputs["h0"], "h0": inputs["h_T"], "weight_o": torch.cat([second, first], 1)}
    mine = functional.label_scores(**inputs, backend=backend)
    assert torch.allclose(functional.label_scores(**swapped, backend=backend), mine, rtol=1e-12, atol=1e-13)
    assert not torch.allclose(
        functional.label_scores(**inputs | {"h_T": inputs["h0"], "h0": inputs["h_T"]}, backend=backend), mine, rtol=1e-2
    )


@by_backend
@pytest.mark.parametrize("low_rank", [True, False], ids=["few_locations", "many_locations"])
def test_factors_and_their_product_give_the_same_scores(low_rank: bool, backend: str) -> None:
    shape = SHAPES["few_locations" if low_rank else "many_locations"]
    assert shapes.low_rank_pays(shape) == low_rank
    inputs = operations.inputs_of(STEM, shape, F64, variant=Variant(factors=True))
    product = inputs | {"attention": None, "features": None}
    mine = functional.label_scores(**inputs, backend=backend)
    assert torch.allclose(mine, functional.label_scores(**product, backend=backend), rtol=1e-11, atol=1e-12)
