"""The operators, and the operations around them under autograd: opcheck, gradcheck, fakes, repeatability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import operations
import pytest
import shapes
import torch
from operations import PLAIN, STEMS, Variant, by_backend, by_each_stem
from shapes import GRADCHECK_SHAPES, SHAPES, Inputs, Shape
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ssgrl_fast import functional, testing
from ssgrl_fast.backends import extension

TINY = SHAPES["tiny"]
F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
LIBRARY = extension.library()
needs_library = pytest.mark.skipif(LIBRARY is not None, reason=str(LIBRARY))

CASES: list[Any] = [
    pytest.param(stem, variant, id=f"{stem}-{variant}")
    for stem, variants in {
        "semantic_attention": [PLAIN],
        "graph_propagation": [
            PLAIN,
            Variant(factors=True, reset_gate="official"),
            Variant(factors=True, blocks=True),
            Variant(bias=False, blocks=True, reset_gate="official"),
        ],
        "label_scores": [PLAIN, Variant(factors=True), Variant(bias=False)],
    }.items()
    for variant in variants
]
by_case = pytest.mark.parametrize(("stem", "variant"), CASES)


def leaf_names(inputs: Inputs, variant: Variant) -> list[str]:
    """The tensors that take a gradient."""
    return [n for n, t in inputs.items() if t is not None and n != "adjacency" and not (n == "h0" and variant.factors)]


def function_of(
    stem: str, variant: Variant, inputs: Inputs, backend: str | None, steps: int = 2
) -> tuple[Any, list[Tensor]]:
    """The operation as a function of its leaves alone, and the leaves. With factors, h0 is always their product."""
    names = leaf_names(inputs, variant)
    call = operations.fused(stem, variant, steps, backend)

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        tensors = {**inputs, **dict(zip(names, leaves, strict=True))}
        if variant.factors:
            tensors["h0"] = tensors["attention"] @ tensors["features"]
        return call(tensors)

    return function, [inputs[n].clone().requires_grad_() for n in names]


# The operators.


def registered() -> set[str]:
    return {
        n.removeprefix("ssgrl_fast::") for n in torch._C._dispatch_get_all_op_names() if n.startswith("ssgrl_fast::")
    }


NAMESPACES = {"cpu": "ssgrl_fast", "triton": "ssgrl_fast_triton"}


def operator_calls(
    stem: str, shape: Shape, dtype: torch.dtype, variant: Variant, backend: str = "cpu"
) -> list[tuple[str, tuple[Any, ...]]]:
    """The arguments with which an operation calls its operators, recorded from a run of it, forward without and with
    a gradient asked for, and backward."""
    operations.skip_unless_it_runs(backend, dtype)
    namespace = NAMESPACES[backend]
    calls: list[tuple[str, tuple[Any, ...]]] = []

    class Catch(operations.Recorder):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == namespace:
                assert not kwargs
                calls.append((func.name().removeprefix(f"{namespace}::"), args))
            return super().__torch_dispatch__(func, types, args, kwargs)

    inputs = operations.inputs_of(stem, shape, dtype, variant=variant)
    call = operations.fused(stem, variant, shape.T, backend)
    with Catch():
        with torch.no_grad():
            call(inputs)
        outputs = call(operations.leaves_of(inputs))
        torch.autograd.backward(list(outputs), operations.upstream_of(outputs, 0))
    return calls


def detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return [detached(v) for v in value] if isinstance(value, list | tuple) else value


@needs_library
def test_the_library_registers_a_forward_and_a_backward_a_stem() -> None:
    both = {f"{stem}{end}" for stem in STEMS for end in ("", "_backward")}
    assert registered() == both | {"graph_propagation_fp8"}


@pytest.mark.parametrize("backend", NAMESPACES)
@by_case
@pytest.mark.parametrize("shape", [SHAPES[n] for n in ("tiny", "few_locations", "empty_batch")], ids=shapes.shape_id)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_opcheck(stem: str, variant: Variant, shape: Shape, dtype: torch.dtype, backend: str) -> None:
    calls = operator_calls(stem, shape, dtype, variant, backend)
    assert [name for name, _ in calls] == [stem, stem, f"{stem}_backward"]
    for name, args in calls:
        torch.library.opcheck(getattr(getattr(torch.ops, NAMESPACES[backend]), name).default, detached(args))


@needs_library
@by_each_stem
def test_operators_check_their_own_arguments(stem: str) -> None:
    """The operators can be called without functional.py; a wrong shape or dtype of theirs must not reach a kernel."""
    variant = Variant(factors=stem != "semantic_attention")
    for name, args in operator_calls(stem, TINY, F32, variant):
        operator = getattr(torch.ops.ssgrl_fast, name).default
        for argument, i in zip(operator._schema.arguments, range(len(args)), strict=True):
            value = args[i]
            if not isinstance(value, Tensor) or value.numel() == 0:
                continue
            wrongs = [value.new_zeros(*value.shape, 1)]
            if (name, argument.name) != ("semantic_attention", "v"):  # the only one to know C
                wrongs.append(torch.cat([value, value], 0))
            if argument.name != "attention" or stem == "semantic_attention":  # cast where it is a factor of h0
                wrongs.append(value.double())
            for wrong in wrongs:
                with pytest.raises(RuntimeError, match=f"{name}: "):
                    operator(*args[:i], wrong, *args[i + 1 :])
                    pytest.fail(f"{name} took {argument.name} {list(wrong.shape)} {wrong.dtype}")


# Autograd.


@by_backend
@by_case
@pytest.mark.parametrize("shape", GRADCHECK_SHAPES, ids=shapes.shape_id)
def test_gradcheck(stem: str, variant: Variant, shape: Shape, backend: str) -> None:
    inputs = operations.inputs_of(stem, shape, F64, variant=variant)
    function, leaves = function_of(stem, variant, inputs, backend)
    assert torch.autograd.gradcheck(function, leaves, eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.thorough
@by_backend
@by_case
def test_gradgradcheck(stem: str, variant: Variant, backend: str) -> None:
    shape = SHAPES["tiny"]
    inputs = operations.inputs_of(stem, shape, F64, variant=variant)
    function, leaves = function_of(stem, variant, inputs, backend)
    assert torch.autograd.gradgradcheck(
        function, leaves, eps=1e-6, atol=1e-7, rtol=1e-5, gen_non_contig_grad_outputs=True
    )


@by_backend
@by_each_stem
def test_third_derivatives_are_right_or_refused(stem: str, backend: str) -> None:
    inputs = operations.inputs_of(stem, TINY, F64)
    name = {"semantic_attention": "u", "graph_propagation": "h0", "label_scores": "h_T"}[stem]

    def third(call: Callable[[Inputs], tuple[Tensor, ...]]) -> Tensor:
        leaves = operations.leaves_of(inputs, needs=(name,))
        derivative = call(leaves)[0]
        for order in (1, 2, 3):
            (derivative,) = torch.autograd.grad(derivative.square().sum(), leaves[name], create_graph=order < 3)
        return derivative

    truth = third(operations.plain(stem, PLAIN, 2))
    try:
        mine = third(operations.fused(stem, PLAIN, 2, backend))
    except RuntimeError as error:
        assert any(word in str(error) for word in ("differentiate twice", "third", "order")), error
        return
    assert testing.relative_error(mine, truth) <= 1e-10


@by_backend
@by_case
def test_each_input_alone_gets_its_whole_gradient(stem: str, variant: Variant, backend: str) -> None:
    inputs = operations.inputs_of(stem, SHAPES["odd"], F64, variant=variant)
    call = operations.fused(stem, variant, 3, backend)
    with torch.no_grad():
        upstream = operations.upstream_of(call(inputs), 0)
    everything = operations.evaluate(stem, call, operations.leaves_of(inputs), upstream)
    for name in leaf_names(inputs, variant):
        leaves = operations.leaves_of(inputs, needs=(name,))
        outputs = call(leaves)
        torch.autograd.backward(
            [o for o in outputs if o.requires_grad],
            [g for o, g in zip(outputs, upstream, strict=True) if o.requires_grad],
        )
        assert [n for n, t in leaves.items() if t is not None and t.grad is not None] == [name]
        assert torch.allclose(leaves[name].grad, everything[f"d_{name}"], rtol=1e-12, atol=1e-14), name


@by_backend
@pytest.mark.parametrize("used", ["pooled", "attention"])
def test_semantic_attention_with_one_output_used(used: str, backend: str) -> None:
    inputs = operations.inputs_of("semantic_attention", SHAPES["odd"], F64)
    which = ("pooled", "attention").index(used)
    gradients = []
    for call in (
        operations.fused("semantic_attention", PLAIN, 1, backend),
        operations.plain("semantic_attention", PLAIN, 1),
    ):
        leaves = operations.leaves_of(inputs)
        output = call(leaves)[which]
        output.backward(operations.upstream_of((output,), 1)[0])
        gradients.append({n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in leaves.items()})
    for name, mine in gradients[0].items():
        assert torch.allclose(mine, gradients[1][name], rtol=1e-11, atol=1e-13), name


@by_backend
@by_each_stem
def test_backward_twice_through_a_retained_graph(stem: str, backend: str) -> None:
    leaves = operations.leaves_of(operations.inputs_of(stem, SHAPES["odd"], F32))
    outputs = operations.fused(stem, PLAIN, 3, backend)(leaves)
    upstream = operations.upstream_of(outputs, 0)
    wanted = [t for t in leaves.values() if t is not None and t.requires_grad]
    first = torch.autograd.grad(outputs, wanted, upstream, retain_graph=True)
    second = torch.autograd.grad(outputs, wanted, upstream)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(outputs, wanted, upstream)


@by_backend
@by_each_stem
def test_an_input_changed_in_place_before_the_backward_is_noticed(stem: str, backend: str) -> None:
    inputs = operations.inputs_of(stem, TINY, F32)
    leaves = operations.leaves_of(inputs)
    name = {"semantic_attention": "v", "graph_propagation": "weight_h", "label_scores": "weight_o"}[stem]
    (output, *_) = operations.fused(stem, PLAIN, 3, backend)(leaves)
    with torch.no_grad():
        leaves[name].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def oddly_laid(upstream: Tensor, kind: str) -> Tensor:
    if kind == "expanded":
        return torch.ones((), dtype=upstream.dtype).expand(upstream.shape)
    return shapes.LAYOUTS[kind](upstream)


@by_backend
@by_each_stem
@pytest.mark.parametrize("kind", ["transposed", "strided", "sliced", "expanded"])
@pytest.mark.parametrize("dtype", [F64, BF16], ids=str)
def test_gradients_of_outputs_in_any_layout(stem: str, kind: str, dtype: torch.dtype, backend: str) -> None:
    inputs = operations.inputs_of(stem, SHAPES["odd"], dtype)
    call = operations.fused(stem, PLAIN, 3, backend)
    with torch.no_grad():
        odd = [oddly_laid(g, kind) for g in operations.upstream_of(call(inputs), 0)]
    assert any(not g.is_contiguous() for g in odd)
    mine = operations.evaluate(stem, call, operations.leaves_of(inputs), odd)
    contiguous = operations.evaluate(stem, call, operations.leaves_of(inputs), [g.contiguous() for g in odd])
    for name, gradient in mine.items():
        assert testing.relative_error(gradient, contiguous[name]) <= (1e-14 if dtype == F64 else 2e-3), name


@by_backend
def test_the_adjacency_is_a_constant(backend: str) -> None:
    inputs = operations.inputs_of("graph_propagation", TINY, F32)
    leaves = operations.leaves_of(inputs, needs=("adjacency", "h0"))
    operations.fused("graph_propagation", PLAIN, 3, backend)(leaves)[0].sum().backward()
    assert leaves["adjacency"].grad is None and leaves["h0"].grad is not None
    alone = operations.leaves_of(inputs, needs=("adjacency",))
    assert not operations.fused("graph_propagation", PLAIN, 3, backend)(alone)[0].requires_grad


@by_backend
@pytest.mark.parametrize("stem", ["graph_propagation", "label_scores"])
def test_h0_beside_its_factors_gets_no_gradient(stem: str, backend: str) -> None:
    variant = Variant(factors=True)
    leaves = operations.leaves_of(operations.inputs_of(stem, TINY, F32, variant=variant))
    assert leaves["h0"].requires_grad
    operations.fused(stem, variant, 3, backend)(leaves)[0].sum().backward()
    assert leaves["h0"].grad is None
    assert leaves["attention"].grad is not None and leaves["features"].grad is not None


@by_backend
@by_each_stem
def test_nothing_is_recorded_without_grad(stem: str, backend: str) -> None:
    leaves = operations.leaves_of(operations.inputs_of(stem, TINY, F32))
    call = operations.fused(stem, PLAIN, 3, backend)
    graded = call(leaves)
    assert all(o.requires_grad for o in graded)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            outputs = call(leaves)
        for output, other in zip(outputs, graded, strict=True):
            assert not output.requires_grad and torch.equal(output, other)


@by_backend
@by_each_stem
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_results_are_bitwise_repeatable(stem: str, dtype: torch.dtype, backend: str) -> None:
    """Two runs, on two threads each, forward and every gradient."""
    variant = Variant(factors=stem != "semantic_attention")
    runs = []
    with operations.threads(2):
        for _ in range(2):
            inputs = operations.inputs_of(stem, SHAPES["off_tile"], dtype, variant=variant)
            call = operations.fused(stem, variant, 3, backend)
            with torch.no_grad():
                upstream = operations.upstream_of(call(inputs), 0)
            runs.append(operations.evaluate(stem, call, operations.leaves_of(inputs), upstream))
    for name, tensor in runs[0].items():
        assert torch.equal(tensor, runs[1][name]), name


# Transforms, modes and tracing: tests/functional/test_func_transforms.py


@by_each_stem
def test_fake_tensors_have_the_shapes_and_dtypes_of_real_ones(stem: str) -> None:
    for case_stem, variant in (p.values for p in CASES):
        if case_stem != stem:
            continue
        for dtype in (F32, BF16):
            inputs = operations.inputs_of(stem, SHAPES["few_locations"], dtype, variant=variant)
            call = operations.fused(stem, variant, 3, None)
            real = call(operations.leaves_of(inputs))
            torch.autograd.backward([o.sum() for o in real])
            with FakeTensorMode() as mode:
                fake_inputs = {n: None if t is None else mode.from_tensor(t) for n, t in inputs.items()}
                leaves = operations.leaves_of(fake_inputs)
                fake = call(leaves)
                torch.autograd.backward([o.sum() for o in fake])
            for f, r in zip(fake, real, strict=True):
                assert f.shape == r.shape and f.dtype == r.dtype and f.stride() == r.stride()
            for name in leaf_names(inputs, variant):
                assert leaves[name].grad.shape == inputs[name].shape and leaves[name].grad.dtype == inputs[name].dtype


def test_float32_adjacency_beside_reduced_states() -> None:
    inputs = operations.inputs_of("graph_propagation", TINY, BF16)
    exact = inputs | {"adjacency": shapes.adjacency(TINY).float()}
    call = operations.fused("graph_propagation", PLAIN, 3, None)
    assert torch.equal(call(exact)[0], call(inputs)[0])


def test_packed_weights_are_the_blocks() -> None:
    inputs = shapes.graph_propagation_inputs(SHAPES["odd"], F64)
    blocks = operations.cut_into_blocks(inputs)
    repacked = operations.pack(blocks)
    for name in ("weight_zr", "bias_zr", "weight_h", "bias_h"):
        assert torch.equal(repacked[name], inputs[name])
    packed_h, blocks_h = (
        functional.graph_propagation(**inputs),
        operations.fused("graph_propagation", Variant(blocks=True), 3, None)(blocks)[0],
    )
    assert torch.allclose(packed_h, blocks_h, rtol=1e-12, atol=1e-14)
