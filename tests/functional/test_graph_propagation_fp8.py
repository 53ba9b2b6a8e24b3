"""graph_propagation_fp8: the reference against scalar loops, every backend against the reference, bad input, and the
head that quantize() makes.

What e4m3 costs is no error of a kernel: a backend may err, measured from the unrounded float64 truth, 1.2 times as much
as the reference does with the same operands in e4m3 and the same states in bfloat16.
"""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import operations
import pytest
import shapes
import torch
from e4m3_codes import nearest
from operations import backend_params
from shapes import Shape
from torch import Tensor

import ssgrl_fast as sf
from ssgrl_fast import functional, reference
from ssgrl_fast.backends import BackendUnavailable
from ssgrl_fast.inference.explain import neighbour_contributions
from ssgrl_fast.modules.fp8 import quantize_gates
from ssgrl_fast.reference.e4m3 import Fp8Gates

STEM = "graph_propagation_fp8"
BF16, F64 = torch.bfloat16, torch.float64
by_backend = pytest.mark.parametrize("backend", backend_params((STEM,)))
by_kernels = pytest.mark.parametrize("backend", [p for p in backend_params((STEM,)) if p.id != "reference"])
SHAPES = [
    Shape("one_class", 2, 6, 1, 16, 7, 3),
    Shape("narrow", 3, 13, 7, 16, 11, 9),
    Shape("isolated", 2, 6, 9, 48, 10, 8, isolated=(0, 4, 8)),
    Shape("one_step", 2, 5, 20, 32, 6, 5, T=1),
    Shape("five_steps", 2, 4, 3, 64, 5, 5, T=5),
    Shape("many_classes", 1, 4, 500, 16, 5, 7),
    Shape("on_tile", 2, 64, 16, 128, 128, 64),
    Shape("off_tile", 2, 33, 19, 80, 129, 31),
    Shape("saturated", 2, 9, 6, 32, 24, 12, saturated=True),
]
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=shapes.shape_id)


def inputs_of(
    shape: Shape, seed: int = 0, *, bias: bool = True, reset_gate: str = "paper"
) -> tuple[dict[str, Any], Fp8Gates]:
    """The float inputs of graph_propagation in bfloat16, and their gates in e4m3."""
    t = shapes.graph_propagation_inputs(shape, BF16, seed, bias=bias)
    weights = [t[name] for name in ("weight_zr", "bias_zr", "weight_h", "bias_h")]
    given = {name: t[name] for name in ("h0", "adjacency", "weight_zr", "bias_zr", "weight_h", "bias_h")}
    return given, quantize_gates(*weights, t["adjacency"], reset_gate)  # type: ignore[arg-type]


def by_loops(h0: Tensor, adjacency: Tensor, gates: Fp8Gates, steps: int) -> Tensor:
    """h_T [C, D] of one image [C, D], one number at a time in float64, without rounding of the states."""
    classes, dim = h0.shape
    scale = 2.0 ** (math.ceil(math.log2(max(1.0, h0.abs().max().item()))) - 8)
    zr, h_weight = (w.double().tolist() for w in (gates.weight_zr, gates.weight_h))
    zr_scale, h_scale = (s.double().tolist() for s in (gates.scale_zr, gates.scale_h))
    zr_bias = [0.0] * (2 * dim) if gates.bias_zr is None else gates.bias_zr.double().tolist()
    h_bias = [0.0] * dim if gates.bias_h is None else gates.bias_h.double().tolist()
    graph = adjacency.double().tolist()

    def rounded(values: list[float]) -> list[float]:
        return nearest(torch.tensor(values, dtype=F64)).tolist()

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x)) if x > -700 else 0.0

    state = h0.double().tolist()
    for _ in range(steps):
        new = []
        for c in range(classes):
            inward = [math.fsum(graph[c][e] * state[e][d] for e in range(classes)) for d in range(dim)]
            outward = [math.fsum(graph[e][c] * state[e][d] for e in range(classes)) for d in range(dim)]
            own = rounded([x / scale for x in state[c]])
            messages = rounded([x / (scale * gates.inward) for x in inward])
            messages += rounded([x / (scale * gates.outward) for x in outward])
            read = own + messages
            sums = [math.fsum(a * b for a, b in zip(row, read, strict=True)) for row in zr]
            gate = [sigmoid(x * t * scale + b) for x, t, b in zip(sums, zr_scale, zr_bias, strict=True)]
            reset = rounded([gate[dim + d] * state[c][d] / scale for d in range(dim)])
            read = messages + reset
            sums = [math.fsum(a * b for a, b in zip(row, read, strict=True)) for row in h_weight]
            candidate = [math.tanh(x * t * scale + b) for x, t, b in zip(sums, h_scale, h_bias, strict=True)]
            new.append([(1 - z) * x + z * n for z, x, n in zip(gate[:dim], state[c], candidate, strict=True)])
        state = new
    return torch.tensor(state, dtype=F64)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s.C * s.D <= 200], ids=shapes.shape_id)
def test_the_reference_is_the_loops(shape: Shape, bias: bool) -> None:
    given, gates = inputs_of(shape, bias=bias)
    found = reference.graph_propagation_fp8(given["h0"].double(), given["adjacency"], gates, steps=shape.T)
    for image in range(shape.B):
        truth = by_loops(given["h0"][image], given["adjacency"], gates, shape.T)
        assert torch.allclose(found[image], truth, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("reset_gate", ["paper", "official"])
@by_shape
def test_the_reference_is_near_the_unrounded_equations(shape: Shape, reset_gate: str) -> None:
    """Within what 2^-4 an operand can do at all; how much it does on trained weights is judged by mAP."""
    given, gates = inputs_of(shape, reset_gate=reset_gate)
    exact = {name: None if t is None else t.double() for name, t in given.items()}
    truth = reference.graph_propagation(**exact, steps=shape.T, reset_gate=reset_gate)
    found = reference.graph_propagation_fp8(exact["h0"], exact["adjacency"], gates, steps=shape.T)
    assert (found - truth).norm() <= 0.1 * truth.norm()
    assert (found - truth).norm() > 1e-4 * truth.norm(), "nothing was rounded to e4m3"


@by_kernels
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_parity(bias: bool, backend: str) -> None:
    pool: list[tuple[Tensor, Tensor, Tensor]] = []
    for shape in SHAPES:
        for seed in range(4):
            given, gates = inputs_of(shape, seed, bias=bias)
            exact = {name: None if t is None else t.double() for name, t in given.items()}
            truth = reference.graph_propagation(**exact, steps=shape.T)
            plain = reference.graph_propagation_fp8(given["h0"], given["adjacency"], gates, steps=shape.T)
            with torch.no_grad():
                found = functional.graph_propagation_fp8(
                    given["h0"], given["adjacency"], gates, steps=shape.T, backend=backend
                )
            assert found.dtype == BF16 and found.shape == given["h0"].shape
            pool.append((found, truth, plain))
    scaled = [
        [t.double() / truth.square().mean().sqrt() for t in (found, truth, plain)] for found, truth, plain in pool
    ]
    results, truths, plains = (list(column) for column in zip(*scaled, strict=True))
    sf.testing.assert_close_to_truth(
        "h_T in e4m3", results, truths, plains, operation="graph_propagation", gradient=False, dtype=BF16
    )


@by_kernels
@by_shape
def test_a_backend_rounds_what_the_reference_rounds(shape: Shape, backend: str) -> None:
    """Bit for bit nearly everywhere: sums in another order can tip a rounding, of bfloat16 often, of e4m3 seldom."""
    given, gates = inputs_of(shape)
    plain = reference.graph_propagation_fp8(given["h0"], given["adjacency"], gates, steps=1).double()
    found = functional.graph_propagation_fp8(given["h0"], given["adjacency"], gates, steps=1, backend=backend).double()
    step = plain.abs().clamp(min=2.0**-6) * 2.0**-7
    assert ((found - plain).abs() > step).double().mean() < 0.01


@by_backend
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_image_that_is_not_finite_gives_nan_and_the_others_what_they_gave(bad: float, backend: str) -> None:
    given, gates = inputs_of(SHAPES[1])
    clean = functional.graph_propagation_fp8(given["h0"], given["adjacency"], gates, backend=backend)
    h0 = given["h0"].clone()
    h0[1, 3, 5] = bad
    found = functional.graph_propagation_fp8(h0, given["adjacency"], gates, backend=backend)
    assert found[1].isnan().all()
    assert torch.equal(operations.bits(found[[0, 2]]), operations.bits(clean[[0, 2]]))


@by_backend
@pytest.mark.parametrize("size", [1e-30, 1e3, 1e30])
def test_states_of_any_size_are_within_their_scale(size: float, backend: str) -> None:
    given, gates = inputs_of(SHAPES[6], bias=False)
    h0 = (given["h0"].double() * size).to(BF16)
    exact = {name: None if t is None else t.double() for name, t in given.items()} | {"h0": h0.double()}
    truth = reference.graph_propagation(**exact)
    plain = reference.graph_propagation_fp8(h0, given["adjacency"], gates).double()
    found = functional.graph_propagation_fp8(h0, given["adjacency"], gates, backend=backend).double()
    assert torch.isfinite(found).all()
    assert (found - truth).norm() <= max(1.2 * (plain - truth).norm(), 2**-9 * truth.norm())


@by_backend
@pytest.mark.parametrize("state", [1e-39, 1e32, math.inf, math.nan])
def test_no_state_leaves_its_bound_and_no_image_its_own_numbers(state: float, backend: str) -> None:
    """Ten steps of which every state is at most max(1, max|h0|), as docs/kernels.md says, or NaN with all its image."""
    given, _ = inputs_of(SHAPES[1], bias=False)
    h0 = torch.cat([given["h0"], torch.full_like(given["h0"][:1], -0.0)])
    h0[0, 3] *= state
    bound = h0.abs().amax((1, 2), keepdim=True).clamp(min=1)
    weight_zr, weight_h = given["weight_zr"].float(), given["weight_h"].float()
    weight_zr[2], weight_h[5], weight_h[7] = 0, 0, 1e20
    for size in (0.0, 1e-44, 1e-30, -0.5, 1e4):
        adjacency = given["adjacency"] * size
        gates = quantize_gates(weight_zr, None, weight_h, None, adjacency)
        truth = reference.graph_propagation_fp8(h0.double(), adjacency, gates, steps=10)
        found = functional.graph_propagation_fp8(h0, adjacency, gates, steps=10, backend=backend)
        assert torch.equal(found.isnan(), truth.isnan())
        assert found[0].isnan().all() == (not math.isfinite(state)) and torch.isfinite(found[1:]).all()
        assert (found.abs() <= bound)[torch.isfinite(bound).flatten()].all()


@by_backend
def test_no_product_of_scales_and_sums_is_too_large(backend: str) -> None:
    """A state near the largest bfloat16 beside a graph of large sums, and weights near the largest float beside it."""
    given, _ = inputs_of(SHAPES[1], bias=False)
    h0 = given["h0"].clone()
    h0[0, 0, 0] = torch.finfo(BF16).max
    graph = torch.full((7, 7), 100.0, dtype=BF16)
    graph[:, 0] = graph[0] = 0  # so that no message of that state overflows
    gates = quantize_gates(given["weight_zr"], None, given["weight_h"], None, graph)
    truth = reference.graph_propagation_fp8(h0.double(), graph, gates)
    found = functional.graph_propagation_fp8(h0, graph, gates, backend=backend)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[1:].double(), truth[1:], atol=2**-4)
    assert torch.allclose(found[0, 1:].double(), truth[0, 1:], atol=2**-4)

    alone = torch.zeros_like(h0)
    alone[:, 0, 0] = 1e38
    large = quantize_gates(given["weight_zr"] * 1e30, None, given["weight_h"] * 1e30, None, graph)
    assert torch.isfinite(functional.graph_propagation_fp8(alone, graph, large, backend=backend)).all()


@by_backend
def test_strides_empty_batches_and_a_poisoned_workspace(backend: str) -> None:
    given, gates = inputs_of(SHAPES[2])
    h0, adjacency = given["h0"], given["adjacency"]
    clean = functional.graph_propagation_fp8(h0, adjacency, gates, backend=backend)
    strided = h0.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    transposed = adjacency.t().contiguous().t()
    assert not strided.is_contiguous() and not transposed.is_contiguous()
    kept = h0.clone()
    with operations.poisoned_memory():
        found = functional.graph_propagation_fp8(strided, transposed, gates, backend=backend)
    assert torch.equal(found, clean) and torch.equal(h0, kept)
    assert functional.graph_propagation_fp8(h0[:0], adjacency, gates, backend=backend).shape == (0, *h0.shape[1:])
    rounded = functional.graph_propagation_fp8(h0, adjacency.float(), gates, backend=backend)
    assert torch.equal(rounded, clean)


@by_backend
def test_views_at_odd_addresses_are_taken(backend: str) -> None:
    given, gates = inputs_of(SHAPES[2])
    h0, adjacency = given["h0"], given["adjacency"]

    def shifted(tensor: Tensor) -> Tensor:
        buffer = tensor.new_empty(tensor.numel() + 1)
        buffer[1:] = tensor.flatten()
        assert buffer[1:].data_ptr() % 16
        return buffer[1:].view(tensor.shape)

    moved = Fp8Gates(*(shifted(part) if isinstance(part, Tensor) else part for part in gates))
    found = functional.graph_propagation_fp8(shifted(h0), shifted(adjacency), moved, backend=backend)
    assert torch.equal(found, functional.graph_propagation_fp8(h0, adjacency, gates, backend=backend))


def test_bad_input_is_refused_with_its_name() -> None:
    given, gates = inputs_of(SHAPES[1])
    h0, adjacency = given["h0"], given["adjacency"]

    def refused(error: type[Exception], text: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(error, match=text):
            functional.graph_propagation_fp8(*arguments, **options)

    refused(TypeError, "gates must be Fp8Gates", h0, adjacency, tuple(gates))
    refused(TypeError, "h0 must be bfloat16, got torch.float32", h0.float(), adjacency, gates)
    narrow = gates._replace(weight_zr=gates.weight_zr[:16, :24], weight_h=gates.weight_h[:8, :24])
    narrow = narrow._replace(scale_zr=gates.scale_zr[:16], scale_h=gates.scale_h[:8], bias_zr=None, bias_h=None)
    refused(ValueError, "multiple of 16, got D = 8", h0[..., :8], adjacency, narrow)
    refused(ValueError, r"gates.weight_zr must be \[2D, 3D\]", h0.repeat(1, 1, 2), adjacency, gates)
    refused(ValueError, "adjacency must be", h0, adjacency[:3], gates)
    refused(ValueError, "steps must be at least 1", h0, adjacency, gates, steps=0)
    refused(ValueError, "h0 requires a gradient", h0.clone().requires_grad_(), adjacency, gates)
    refused(
        TypeError, "gates.scale_h must be torch.float32", h0, adjacency, gates._replace(scale_h=gates.scale_h.half())
    )
    refused(
        TypeError, "gates.weight_h must be torch.float8", h0, adjacency, gates._replace(weight_h=gates.weight_h.half())
    )
    refused(ValueError, "gates.bias_h is on meta", h0, adjacency, gates._replace(bias_h=gates.bias_h.to("meta")))  # type: ignore[union-attr]
    for wrong in (0.0, math.nan, math.inf, 2, torch.tensor(2.0)):
        text = "gates.inward must be a positive finite float, got"
        refused(ValueError, text, h0, adjacency, gates._replace(inward=wrong))  # type: ignore[arg-type]
    refused(ValueError, "h0 must have at least one class", h0[:, :0], adjacency[:0, :0], gates)
    with pytest.raises(ValueError, match="h0 has a tangent"):
        torch.func.jvp(lambda x: functional.graph_propagation_fp8(x, adjacency, gates), (h0,), (h0,))
    refused(BackendUnavailable, "it has no graph_propagation_fp8", h0, adjacency, gates, backend="cpu")
    with torch.no_grad():
        functional.graph_propagation_fp8(h0.clone().requires_grad_(), adjacency, gates)


# The head


def head(**options: Any) -> sf.SSGRLHead:
    torch.manual_seed(0)
    adjacency = torch.rand(7, 7) * (1 - torch.eye(7))
    return sf.SSGRLHead(32, torch.randn(7, 12), adjacency, joint_dim=24, **options).eval()


@pytest.mark.parametrize("mode", ["paper", "official"])
@torch.no_grad()
def test_a_quantized_head_is_near_its_own(mode: Any) -> None:
    own = head(mode=mode)
    before = copy.deepcopy(own.state_dict())
    found = own.quantize("fp8")
    assert (own.quantized, found.quantized) == (None, "fp8")
    assert found.operations == ("semantic_attention", "graph_propagation_fp8", "label_scores")
    assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in before.items())
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    x = torch.randn(4, 32, 5, 5)
    truth = own.double()(x.double())
    logits, attention = found(x.to(BF16), return_attention=True)
    assert logits.dtype == BF16 and attention.shape == (4, 7, 5, 5)
    rounded = own.bfloat16()(x.to(BF16)).double()
    error, plain = ((t.double() - truth).norm() / truth.norm() for t in (logits, rounded))
    assert plain < error < 0.1, "in e4m3 more is lost than in bfloat16, and not much"


@torch.no_grad()
def test_a_quantized_head_keeps_its_gates_whatever_dtype_it_is_converted_to() -> None:
    found = head().quantize("fp8")
    x = torch.randn(2, 32, 3, 3).to(BF16)
    logits = found(x)
    gates = found.graph_propagation.gates  # type: ignore[union-attr]
    found.float()
    assert [t.dtype for t in gates if isinstance(t, Tensor)] == [
        t.dtype
        for t in found.graph_propagation.gates
        if isinstance(t, Tensor)  # type: ignore[union-attr]
    ]
    with pytest.raises(TypeError, match="h0 must be bfloat16"):
        found(x.float())
    assert torch.equal(found.bfloat16()(x), logits)
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), logits)
    assert torch.equal(copy.deepcopy(found)(x), logits)
    with torch.autocast("cpu", dtype=BF16):
        assert torch.equal(found(x.float()), logits)
    compiled = torch.compile(found, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), logits)


@torch.no_grad()
def test_a_state_dict_brings_the_factors_its_weights_were_quantized_with() -> None:
    own, other = head(), head()
    other.adjacency.mul_(4)
    found, changed = own.quantize(), other.quantize()
    assert found.graph_propagation.inward != changed.graph_propagation.inward  # type: ignore[union-attr]
    file = io.BytesIO()
    torch.save(found.state_dict(), file)
    file.seek(0)
    changed.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 32, 3, 3).to(BF16)
    assert torch.equal(changed(x), found(x))


@torch.no_grad()
def test_a_head_in_bfloat16_refuses_autocast_to_float16_in_a_sentence() -> None:
    own, x = head().bfloat16(), torch.randn(2, 32, 3, 3)
    with torch.autocast("cpu", dtype=torch.float16):
        with pytest.raises(TypeError, match=r"adjacency is torch\.bfloat16, expected torch\.float16 or"):
            own(x)
        with pytest.raises(TypeError, match=r"h0 must be bfloat16, got torch\.float16"):
            own.quantize()(x)


def test_what_cannot_be_quantized_says_why() -> None:
    with pytest.raises(ValueError, match="format must be one of 'fp8'"):
        head().quantize("int8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got interaction=False"):
        head(interaction=False).quantize()
    quantized = head().quantize()
    with pytest.raises(ValueError, match="quantized already"):
        quantized.quantize()
    with pytest.raises(ValueError, match="head is quantized"):
        neighbour_contributions(quantized, torch.randn(32, 3, 3).to(BF16), 0)
    damaged = head()
    torch.nn.init.constant_(damaged.graph_propagation.weight_h, math.nan)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="weight_h holds values that are not finite"):
        damaged.quantize()


def test_a_quantized_model_is_no_bundle(tmp_path: Any) -> None:
    model = sf.SSGRL(
        sf.models.build_backbone("resnet18", pretrained=False), torch.randn(3, 8), torch.rand(3, 3), joint_dim=8
    )
    model.head = model.head.quantize()
    with pytest.raises(ValueError, match="this head is quantized"):
        model.save_pretrained(tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
