"""NaN and infinity in any input: they reach the outputs and gradients that they reach in plain PyTorch."""

from __future__ import annotations

import operations
import pytest
import shapes
import torch
from operations import Variant, by_backend
from shapes import SHAPES
from torch import Tensor

NAMES = {
    "semantic_attention": ("u", "v", "p", "features"),
    "graph_propagation": ("h0", "adjacency", "weight_zr", "bias_zr", "weight_h", "bias_h"),
    "label_scores": ("h_T", "h0", "weight_o", "bias_o", "weight_c", "bias_c"),
}
EACH = [pytest.param(stem, name, id=f"{stem}-{name}") for stem, names in NAMES.items() for name in names]
by_input = pytest.mark.parametrize(("stem", "name"), EACH)
by_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def run(
    stem: str, inputs: shapes.Inputs, backend: str | None, variant: Variant = operations.PLAIN
) -> dict[str, Tensor]:
    """Outputs and gradients on a backend, or, with None, of the plain form in float64 with exact slopes."""
    if backend is None:
        inputs, call = shapes.truth_of(inputs), operations.plain(stem, variant, 2)
    else:
        call = operations.fused(stem, variant, 2, backend)
    with torch.no_grad():
        upstream = [torch.ones_like(o) for o in call(inputs)]
    with operations.ExactSlopes():
        return operations.evaluate(stem, call, operations.leaves_of(inputs), upstream)


def planted(
    stem: str, name: str, value: float, dtype: torch.dtype, shape: str, variant: Variant = operations.PLAIN
) -> shapes.Inputs:
    """Inputs with one element of one of them replaced, not the first of its row."""
    inputs = operations.inputs_of(stem, SHAPES[shape], dtype, variant=variant)
    changed = inputs[name].clone()
    changed.view(-1)[changed.numel() // 2] = value
    return inputs | {name: changed}


@by_backend
@by_input
@by_dtype
@pytest.mark.parametrize("shape", ["tiny", "off_tile"])
def test_nan_reaches_what_it_reaches_in_plain_pytorch(
    stem: str, name: str, dtype: torch.dtype, shape: str, backend: str
) -> None:
    inputs = planted(stem, name, float("nan"), dtype, shape)
    mine, truth = run(stem, inputs, backend), run(stem, inputs, None)
    assert any(truth[output].isnan().any() for output in operations.OUTPUTS[stem])
    for output in operations.OUTPUTS[stem]:
        assert torch.equal(mine[output].isnan(), truth[output].isnan()), output
    for gradient, tensor in truth.items():
        swallowed = tensor.isnan() & ~mine[gradient].isnan()
        assert not swallowed.any(), f"{gradient} is finite at {swallowed.nonzero()[0].tolist()}"


@by_backend
@pytest.mark.parametrize("factors", [False, True], ids=["h0", "factors"])
@pytest.mark.parametrize("stem", ["graph_propagation", "label_scores"])
@pytest.mark.parametrize("name", ["attention", "features"])
def test_nan_in_a_factor_reaches_the_gradients(stem: str, name: str, factors: bool, backend: str) -> None:
    """Where the low-rank first step reads the factors and where it does not; their product h0 carries the NaN too."""
    variant = Variant(factors=True)
    shape = "few_locations" if factors else "many_locations"
    inputs = planted(stem, name, float("nan"), torch.float32, shape, variant)
    inputs["h0"] = inputs["attention"] @ inputs["features"]
    mine, truth = run(stem, inputs, backend, variant), run(stem, inputs, None, variant)
    (output,) = operations.OUTPUTS[stem]
    assert truth[output].isnan().any() and torch.equal(mine[output].isnan(), truth[output].isnan())
    for gradient, tensor in truth.items():
        assert not (tensor.isnan() & ~mine[gradient].isnan()).any(), gradient


@by_backend
@pytest.mark.parametrize("stem", operations.STEMS)
@by_dtype
def test_nan_in_the_gradient_of_an_output_reaches_the_gradients(stem: str, dtype: torch.dtype, backend: str) -> None:
    inputs = operations.inputs_of(stem, SHAPES["off_tile"], dtype)
    gradients = []
    for call, leaves in (
        (operations.fused(stem, operations.PLAIN, 2, backend), operations.leaves_of(inputs)),
        (operations.plain(stem, operations.PLAIN, 2), operations.leaves_of(shapes.truth_of(inputs))),
    ):
        outputs = call(leaves)
        upstream = [torch.ones_like(o) for o in outputs]
        upstream[0].view(-1)[upstream[0].numel() // 2] = float("nan")
        torch.autograd.backward(list(outputs), upstream)
        gradients.append({n: t.grad for n, t in leaves.items() if t is not None and t.grad is not None})
    for name, truth in gradients[1].items():
        assert truth.isnan().any(), name
        assert torch.equal(gradients[0][name].isnan(), truth.isnan()), name


@by_backend
@by_dtype
@pytest.mark.parametrize("value", [float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("name", ["u", "v"])
def test_infinite_products_saturate_the_tanh(name: str, value: float, dtype: torch.dtype, backend: str) -> None:
    """tanh(±inf) = ±1: the outputs stay finite and right, as they do where u v overflows its dtype."""
    inputs = planted("semantic_attention", name, value, dtype, "odd")
    with torch.no_grad():
        mine = operations.fused("semantic_attention", operations.PLAIN, 1, backend)(inputs)
        truth = operations.plain("semantic_attention", operations.PLAIN, 1)(shapes.truth_of(inputs))
    for m, t in zip(mine, truth, strict=True):
        assert torch.isfinite(t).all() and torch.allclose(
            m.double(),
            t,
            rtol=2e-2 if dtype == torch.bfloat16 else 1e-5,
            atol=1e-2 if dtype == torch.bfloat16 else 1e-6,
        )


@by_backend
@pytest.mark.parametrize("scale", [1e19, 1e30, 1e38])
def test_products_that_overflow_their_dtype(scale: float, backend: str) -> None:
    """u v beyond 3.4e38 in float32: forward and gradients finite, and those of the saturated channels zero."""
    inputs = operations.inputs_of("semantic_attention", SHAPES["odd"], torch.float32)
    inputs["u"][:, :, 3] = scale
    inputs["v"][:, 3] = -scale
    results = run("semantic_attention", inputs, backend)
    for name, tensor in results.items():
        assert torch.isfinite(tensor).all(), name
    assert results["d_u"][:, :, 3].abs().max() <= 1e-30 and results["d_v"][:, 3].abs().max() <= 1e-30


@by_backend
@by_dtype
@pytest.mark.parametrize("name", ["bias_zr", "bias_h"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf")], ids=str)
def test_infinite_biases_saturate_the_gates(name: str, value: float, dtype: torch.dtype, backend: str) -> None:
    inputs = planted("graph_propagation", name, value, dtype, "odd")
    with torch.no_grad():
        (mine,) = operations.fused("graph_propagation", operations.PLAIN, 2, backend)(inputs)
        (truth,) = operations.plain("graph_propagation", operations.PLAIN, 2)(shapes.truth_of(inputs))
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.isfinite(truth).all() and torch.allclose(mine.double(), truth, rtol=tolerance, atol=tolerance)


@by_backend
@by_dtype
def test_subnormal_and_tiny_inputs(dtype: torch.dtype, backend: str) -> None:
    """u v far below one: attention is uniform to first order and the gradients are those of the linear form."""
    inputs = operations.inputs_of("semantic_attention", SHAPES["odd"], dtype)
    inputs["u"] = inputs["u"] * 1e-20
    mine, truth = run("semantic_attention", inputs, backend), run("semantic_attention", inputs, None)
    for name, tensor in truth.items():
        limit = 2e-2 if dtype == torch.bfloat16 else 1e-5
        assert float((mine[name].double() - tensor).norm()) <= limit * float(tensor.norm()), name
