"""The operations under torch.compile, torch.export, torch.func, forward mode, autocast, checkpointing and threads."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import operations
import pytest
import shapes
import torch
from operations import PLAIN, STEMS, Variant, by_backend, by_each_stem
from shapes import SHAPES, Inputs
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from ssgrl_fast import backends, functional, reference, use_backend

TINY = SHAPES["tiny"]
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16


def head(
    u: Tensor, v: Tensor, p: Tensor, features: Tensor, w: Inputs, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The three operations in a chain, as the head runs them: logits and attention."""
    pooled, attention = functional.semantic_attention(u, v, p, features, backend=backend)
    factors: dict[str, Any] = {"attention": attention, "features": features, "backend": backend}
    gates = (w["weight_zr"], w["bias_zr"], w["weight_h"], w["bias_h"])
    h_T = functional.graph_propagation(pooled, w["adjacency"], *gates, **factors)
    return functional.label_scores(
        h_T, pooled, w["weight_o"], w["bias_o"], w["weight_c"], w["bias_c"], **factors
    ), attention


def head_inputs(name: str, dtype: torch.dtype) -> tuple[list[Tensor], Inputs]:
    shape = SHAPES[name]
    attend = shapes.semantic_attention_inputs(shape, dtype)
    weights = shapes.graph_propagation_inputs(shape, dtype) | shapes.label_scores_inputs(shape, dtype)
    return [attend[n] for n in ("u", "v", "p", "features")], weights


# torch.compile and torch.export


def gradients_of(function: Any, inputs: list[Tensor], weights: Inputs) -> list[Tensor]:
    """Outputs, then the gradient of every input and weight, from a fixed gradient of the outputs."""
    leaves, held = [t.clone().requires_grad_() for t in inputs], operations.leaves_of(weights)
    outputs = function(*leaves, held)
    torch.autograd.backward(list(outputs), operations.upstream_of(outputs, 0))
    return [
        *(o.detach() for o in outputs),
        *(t.grad for t in leaves),
        *(t.grad for t in held.values() if t is not None and t.grad is not None),
    ]


@by_backend
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_fullgraph_forward_and_backward(compiler: str, backend: str) -> None:
    if (compiler, backend) == ("inductor", "reference"):
        pytest.skip("Inductor's code for the plain equations is PyTorch's to test, and takes a minute to compile")
    torch._dynamo.reset()
    inputs, weights = head_inputs("few_locations", F32)
    compiled = torch.compile(lambda *a: head(*a, backend=backend), fullgraph=True, backend=compiler)
    mine, eager = (
        gradients_of(compiled, inputs, weights),
        gradients_of(lambda *a: head(*a, backend=backend), inputs, weights),
    )
    assert len(mine) == len(eager) == 2 + 4 + 8  # outputs, u v p features, weights
    for a, b in zip(mine, eager, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@by_backend
def test_compile_with_another_batch_size_and_without_grad(backend: str) -> None:
    torch._dynamo.reset()
    inputs, weights = head_inputs("tiny", F32)
    compiled = torch.compile(lambda *a: head(*a, backend=backend), fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for count in (2, 3, 5):
            u, v, p, features = inputs
            u, features = (t.repeat(3, 1, 1)[:count] for t in (u, features))
            for a, b in zip(
                compiled(u, v, p, features, weights), head(u, v, p, features, weights, backend), strict=True
            ):
                assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@by_backend
def test_compile_under_autocast(backend: str) -> None:
    torch._dynamo.reset()
    inputs, weights = head_inputs("tiny", F32)

    def reduced(*args: Any) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return head(*args, backend=backend)

    compiled = torch.compile(reduced, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients_of(compiled, inputs, weights), gradients_of(reduced, inputs, weights), strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a.float(), b.float(), rtol=2e-2, atol=2e-2)


@by_backend
def test_export_with_a_dynamic_batch(backend: str) -> None:
    inputs, weights = head_inputs("tiny", F32)

    class Head(torch.nn.Module):
        def forward(self, u: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
            return head(u, inputs[1], inputs[2], features, weights, backend)

    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        Head(), (inputs[0], inputs[3]), dynamic_shapes={"u": {0: batch}, "features": {0: batch}}
    )
    u, features = (t.repeat(2, 1, 1) for t in (inputs[0], inputs[3]))
    for a, b in zip(program.module()(u, features), Head()(u, features), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


# torch.func


def leader(stem: str) -> str:
    return {"semantic_attention": "u", "graph_propagation": "h0", "label_scores": "h_T"}[stem]


@by_each_stem
def test_func_grad_is_the_gradient(stem: str) -> None:
    inputs = operations.inputs_of(stem, TINY, F64)
    names = tuple(n for n, t in inputs.items() if t is not None and n != "adjacency")

    def total(*values: Tensor) -> Tensor:
        return sum(
            o.square().sum()
            for o in operations.fused(stem, PLAIN, 3, None)(inputs | dict(zip(names, values, strict=True)))
        )

    mine = torch.func.grad(total, argnums=tuple(range(len(names))))(*(inputs[n] for n in names))
    leaves = operations.leaves_of(inputs)
    truth = torch.autograd.grad(
        sum(o.square().sum() for o in operations.plain(stem, PLAIN, 3)(leaves)), [leaves[n] for n in names]
    )
    for name, a, b in zip(names, mine, truth, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-13), name


@by_each_stem
def test_func_vmap_over_inputs_and_over_weights(stem: str) -> None:
    inputs = operations.inputs_of(stem, TINY, F64)
    weight = {"semantic_attention": "p", "graph_propagation": "weight_h", "label_scores": "weight_c"}[stem]
    for name in (leader(stem), weight):
        batch = torch.stack([inputs[name], 2 * inputs[name], -inputs[name]])
        call = operations.fused(stem, PLAIN, 3, None)
        mapped = torch.func.vmap(lambda x, name=name, call=call: call(inputs | {name: x}))(batch)
        for i, x in enumerate(batch):
            for m, o in zip(mapped, call(inputs | {name: x}), strict=True):
                assert torch.allclose(m[i], o, rtol=1e-11, atol=1e-13), name


@by_each_stem
def test_func_gradients_of_single_samples(stem: str) -> None:
    """vmap of grad: one gradient of the weights an image."""
    inputs = operations.inputs_of(stem, TINY, F64)
    weight = {"semantic_attention": "v", "graph_propagation": "weight_zr", "label_scores": "weight_o"}[stem]
    sampled = [n for n in inputs if n in ("u", "features", "h0", "h_T") and inputs[n] is not None]

    def loss(w: Tensor, *sample: Tensor) -> Tensor:
        one = inputs | {weight: w} | {n: s[None] for n, s in zip(sampled, sample, strict=True)}
        return operations.fused(stem, PLAIN, 2, None)(one)[0].square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, *(0 for _ in sampled)))(
        inputs[weight], *(inputs[n] for n in sampled)
    )
    leaves = operations.leaves_of(inputs, needs=(weight,))
    operations.fused(stem, PLAIN, 2, None)(leaves)[0].square().sum().backward()
    assert per_sample.shape[0] == TINY.B
    assert torch.allclose(per_sample.sum(0), leaves[weight].grad, rtol=1e-11, atol=1e-13)


@by_each_stem
def test_func_jacobian_and_hessian_vector_product(stem: str) -> None:
    inputs = operations.inputs_of(stem, SHAPES["one_channel"], F64)
    name = leader(stem)

    def value(x: Tensor) -> Tensor:
        return operations.fused(stem, PLAIN, 2, None)(inputs | {name: x})[0]

    def plain(x: Tensor) -> Tensor:
        return operations.plain(stem, PLAIN, 2)(inputs | {name: x})[0]

    x, direction = inputs[name], shapes.normal(shapes.generator(8), *inputs[name].shape)
    assert torch.allclose(
        torch.func.jacrev(value)(x), torch.autograd.functional.jacobian(plain, x), rtol=1e-11, atol=1e-13
    )
    _, product = torch.func.vjp(torch.func.grad(lambda t: value(t).square().sum()), x)
    _, expected = torch.autograd.functional.vhp(lambda t: plain(t).square().sum(), x, direction)
    assert torch.allclose(product(direction)[0], expected, rtol=1e-10, atol=1e-12)


@by_backend
@by_each_stem
@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_compiled_func_transforms_are_right_or_refused(transform: str, stem: str, backend: str) -> None:
    """torch.compile around torch.func: never a gradient of zeros in silence."""
    torch._dynamo.reset()
    inputs = operations.inputs_of(stem, TINY, F64)
    name = leader(stem)

    def over(call: Any) -> Any:
        if transform == "vmap":
            return torch.func.vmap(lambda x: call(inputs | {name: x})[0])
        return torch.func.grad(lambda x: call(inputs | {name: x})[0].square().sum())

    x = inputs[name] if transform == "grad" else torch.stack([inputs[name], 2 * inputs[name]])
    truth = over(operations.plain(stem, PLAIN, 2))(x)
    with use_backend(None if backend == backends.choose(stem, "cpu", F64) else backend):
        compiled = torch.compile(over(operations.fused(stem, PLAIN, 2, None)), fullgraph=True, backend="aot_eager")
        try:
            mine = compiled(x)
        except (RuntimeError, backends.BackendUnavailable) as error:
            reasons = ["under torch.func", "torch.func transforms and forward-mode differentiation run on 'reference'"]
            reasons += ["of class `ContextVar`"]  # torch 2.11 traces no function that reads use_backend's setting
            assert any(reason in str(error) for reason in reasons), error
            return
    assert torch.allclose(mine, truth, rtol=1e-11, atol=1e-13)


@by_backend
@by_each_stem
@pytest.mark.parametrize("requires_grad", [False, True], ids=["no_grad", "grad"])
def test_forward_mode_never_gives_silent_zeros(stem: str, requires_grad: bool, backend: str) -> None:
    """Dual numbers: the true directional derivative, or an error that says that there is none."""
    inputs = operations.inputs_of(stem, TINY, F64)
    name = leader(stem)
    direction = shapes.normal(shapes.generator(8), *inputs[name].shape)
    with forward_ad.dual_level():
        truth = forward_ad.unpack_dual(
            operations.plain(stem, PLAIN, 2)(inputs | {name: forward_ad.make_dual(inputs[name], direction)})[0]
        ).tangent
        dual = forward_ad.make_dual(inputs[name].clone().requires_grad_(requires_grad), direction)
        try:
            output = operations.fused(stem, PLAIN, 2, backend)(inputs | {name: dual})[0]
        except (RuntimeError, NotImplementedError) as error:
            assert any(word in str(error).lower() for word in ("forward mode", "forward-mode", "jvp", "forward ad")), (
                error
            )
            return
        tangent = forward_ad.unpack_dual(output).tangent
    assert tangent is not None, "the tangent was dropped in silence"
    assert torch.allclose(tangent, truth, rtol=1e-10, atol=1e-12)


@by_each_stem
def test_func_jvp_is_right_or_refused(stem: str) -> None:
    inputs = operations.inputs_of(stem, TINY, F64)
    name = leader(stem)
    direction = shapes.normal(shapes.generator(8), *inputs[name].shape)
    call, plain = operations.fused(stem, PLAIN, 2, None), operations.plain(stem, PLAIN, 2)
    _, truth = torch.func.jvp(lambda x: plain(inputs | {name: x})[0], (inputs[name],), (direction,))
    try:
        _, tangent = torch.func.jvp(lambda x: call(inputs | {name: x})[0], (inputs[name],), (direction,))
    except (RuntimeError, NotImplementedError) as error:
        assert any(word in str(error).lower() for word in ("forward mode", "forward-mode", "jvp", "forward ad")), error
        return
    assert torch.allclose(tangent, truth, rtol=1e-10, atol=1e-12)


# Autocast


@by_backend
@by_each_stem
@pytest.mark.parametrize("factors", [False, True], ids=["h0", "factors"])
def test_autocast_is_a_cast_by_hand(stem: str, factors: bool, backend: str) -> None:
    """float32 in, bfloat16 computed; p, attention and the adjacency stay as they are; gradients are float32."""
    if stem == "semantic_attention" and factors:
        pytest.skip("semantic_attention has no factors")
    variant = Variant(factors=factors)
    inputs = operations.inputs_of(stem, SHAPES["odd"], F32, variant=variant)
    call = operations.fused(stem, variant, 3, backend)
    leaves = operations.leaves_of(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = call(leaves)
        assert torch.is_autocast_enabled("cpu")
    upstream = operations.upstream_of(outputs, 0)
    torch.autograd.backward(list(outputs), upstream)
    kept = ("p", "attention", "adjacency")
    by_hand = operations.leaves_of(inputs)
    cast = {n: t if t is None or n in kept else t.bfloat16() for n, t in by_hand.items()}
    expected = call(cast)
    torch.autograd.backward(list(expected), upstream)
    for o, e in zip(outputs, expected, strict=True):
        assert o.dtype == e.dtype and torch.equal(o, e)
    assert outputs[0].dtype == BF16 and all(o.dtype == F32 for o in outputs[1:])
    for name, leaf in leaves.items():
        if leaf is not None and leaf.grad is not None:
            assert leaf.grad.dtype == F32 and torch.equal(leaf.grad, by_hand[name].grad), name


@by_backend
@by_each_stem
def test_a_backward_called_inside_autocast_is_that_called_outside(stem: str, backend: str) -> None:
    """Autograd runs a backward under the autocast of its caller, which must not reach into the kernels' products."""
    inputs, found = operations.inputs_of(stem, SHAPES["few_locations"], F32), []
    for enabled in (False, True):
        leaves = operations.leaves_of(inputs)
        outputs = operations.fused(stem, PLAIN, 3, backend)(leaves)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            torch.autograd.backward(list(outputs), operations.upstream_of(outputs, 0))
        found.append({n: t.grad for n, t in leaves.items() if t is not None and t.grad is not None})
    assert found[0] and set(found[0]) == set(found[1])
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


@by_each_stem
def test_autocast_leaves_float64_alone(stem: str) -> None:
    inputs = operations.inputs_of(stem, TINY, F64)
    call = operations.fused(stem, PLAIN, 3, None)
    with torch.autocast("cpu", torch.bfloat16):
        under = call(inputs)
    for a, b in zip(under, call(inputs), strict=True):
        assert a.dtype == F64 and torch.equal(a, b)


@by_each_stem
def test_autocast_takes_mixed_dtypes_and_ends_at_its_inner_block(stem: str) -> None:
    inputs = operations.inputs_of(stem, TINY, F32)
    call = operations.fused(stem, PLAIN, 3, None)
    name = leader(stem)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = call(inputs | {name: inputs[name].bfloat16()})
        with torch.autocast("cpu", enabled=False):
            inner = call(inputs)
        whole = call(inputs)
    assert mixed[0].dtype == whole[0].dtype == BF16 and torch.equal(mixed[0], whole[0])
    assert inner[0].dtype == F32 and torch.equal(inner[0], call(inputs)[0])
    with pytest.raises(TypeError, match=name if stem != "semantic_attention" else "u"):
        call(inputs | {name: inputs[name].bfloat16()})


# Other kinds of use


@by_backend
def test_checkpointing_recomputes_the_same(backend: str) -> None:
    inputs, weights = head_inputs("odd", F32)
    saved = gradients_of(lambda *a: head(*a, backend=backend), inputs, weights)
    again = gradients_of(
        lambda *a: checkpoint(lambda *b: head(*b, backend=backend), *a, use_reentrant=False), inputs, weights
    )
    for a, b in zip(saved, again, strict=True):
        assert torch.equal(a, b)


@by_backend
def test_threads_do_not_disturb_each_other(backend: str) -> None:
    cases = [(stem, seed) for stem in STEMS for seed in range(4)]

    def work(case: tuple[str, int]) -> dict[str, Tensor]:
        stem, seed = case
        with use_backend(backend):
            inputs = operations.inputs_of(stem, SHAPES["off_tile"], F32, seed)
            call = operations.fused(stem, PLAIN, 3, None)
            with torch.no_grad():
                upstream = operations.upstream_of(call(inputs), seed)
            return operations.evaluate(stem, call, operations.leaves_of(inputs), upstream)

    with operations.threads(1), ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, cases))
        alone = [work(case) for case in cases]
    for case, a, b in zip(cases, together, alone, strict=True):
        for name, tensor in a.items():
            assert torch.equal(tensor, b[name]), (case, name)


def test_reference_and_operations_share_their_signatures() -> None:
    for stem in STEMS:
        public = inspect.signature(getattr(functional, stem)).parameters
        plain = inspect.signature(getattr(reference, stem)).parameters
        assert [n for n in public if n != "backend"] == list(plain)
        assert all(public[n].kind == plain[n].kind and public[n].default == plain[n].default for n in plain)
