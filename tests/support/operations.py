"""One way to run an operation, its float64 truth and its plain PyTorch form, forward and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import shapes
import torch
import torch.utils.deterministic
from shapes import Inputs, Shape
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ssgrl_fast import backends, functional, reference, testing
from ssgrl_fast.functional import GateBlocks

STEMS = ("semantic_attention", "graph_propagation", "label_scores")
OUTPUTS = {"semantic_attention": ("pooled", "attention"), "graph_propagation": ("h_T",), "label_scores": ("logits",)}


@dataclass(frozen=True)
class Variant:
    """Which optional arguments of an operation are there."""

    factors: bool = False
    reset_gate: str = "paper"
    bias: bool = True
    blocks: bool = False

    def __str__(self) -> str:
        words = ["factors" if self.factors else "h0", self.reset_gate]
        words += [] if self.bias else ["no_bias"]
        words += ["blocks"] if self.blocks else []
        return "-".join(words)


PLAIN = Variant()
PROPAGATION_VARIANTS = [  # every pair of options, and every triple without the biases
    Variant(factors, gate, bias=blocks == (gate == "paper"), blocks=blocks)
    for factors in (False, True)
    for gate in ("paper", "official")
    for blocks in (False, True)
]
SCORES_VARIANTS = [Variant(factors, bias=bias) for factors in (False, True) for bias in (True, False)]
VARIANTS = {"semantic_attention": [PLAIN], "graph_propagation": PROPAGATION_VARIANTS, "label_scores": SCORES_VARIANTS}


def backend_params(stems: Sequence[str] = STEMS) -> list[Any]:
    """One pytest parameter a backend; one that cannot run on the default device is skipped, with its own reason."""
    params, device = [], torch.get_default_device().type
    for name in backends.names():
        rows = [row for row in backends.explain(device) if row.backend == name and row.operation in stems]
        reasons = [row.reason for row in rows if not row.usable]
        marks = [pytest.mark.skip(reason=f"{name}: {reasons[0]}")] if reasons else []
        params.append(pytest.param(name, marks=marks, id=name))
    return params


by_backend = pytest.mark.parametrize("backend", backend_params())
by_each_stem = pytest.mark.parametrize("stem", STEMS)


def runs(backend: str, dtype: torch.dtype) -> bool:
    """Whether a backend says that it runs a dtype on the default device."""
    device = torch.get_default_device()
    rows = [row for row in backends.explain(device) if row.backend == backend and row.operation in STEMS]
    return any(dtype in row.dtypes for row in rows)


def skip_unless_it_runs(backend: str, dtype: torch.dtype) -> None:
    """Skip the test where a backend says that it does not run a dtype."""
    if not runs(backend, dtype):
        pytest.skip(f"{backend} does not run {str(dtype).removeprefix('torch.')} here")


def inputs_of(stem: str, shape: Shape, dtype: torch.dtype, seed: int = 0, variant: Variant = PLAIN) -> Inputs:
    """The tensors of an operation by name; with blocks, the nine of the published layout for the packed ones."""
    if stem == "semantic_attention":
        return shapes.semantic_attention_inputs(shape, dtype, seed)
    inputs = shapes.INPUTS[stem](shape, dtype, seed, factors=variant.factors, bias=variant.bias)
    return cut_into_blocks(inputs) if variant.blocks else inputs


def cut_into_blocks(inputs: Inputs) -> Inputs:
    """The packed gate weights as nine contiguous tensors, cut by the layout that the public contract gives."""
    rest = {n: t for n, t in inputs.items() if n not in ("weight_zr", "bias_zr", "weight_h", "bias_h")}
    zr, h, b_zr, b_h = (inputs[n] for n in ("weight_zr", "weight_h", "bias_zr", "bias_h"))
    D = h.shape[0]
    cuts = {
        "w_z": zr[:D, D:],
        "u_z": zr[:D, :D],
        "w_r": zr[D:, D:],
        "u_r": zr[D:, :D],
        "w_h": h[:, : 2 * D],
        "u_h": h[:, 2 * D :],
    }
    biases = {"b_z": None, "b_r": None, "b_h": None} if b_zr is None else {"b_z": b_zr[:D], "b_r": b_zr[D:], "b_h": b_h}
    return rest | {n: None if t is None else t.clone() for n, t in (cuts | biases).items()}


def pack(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Nine blocks back to the packed layout, by differentiable concatenation."""
    t = dict(tensors)
    w_z, u_z, w_r, u_r, w_h, u_h, b_z, b_r, b_h = (
        t.pop(n) for n in ("w_z", "u_z", "w_r", "u_r", "w_h", "u_h", "b_z", "b_r", "b_h")
    )
    weight_zr = torch.cat([torch.cat([u_z, w_z], 1), torch.cat([u_r, w_r], 1)])
    bias_zr = None if b_z is None else torch.cat([b_z, b_r])
    return t | {"weight_zr": weight_zr, "bias_zr": bias_zr, "weight_h": torch.cat([w_h, u_h], 1), "bias_h": b_h}


def fused(stem: str, variant: Variant, steps: int, backend: str | None) -> Callable[..., tuple[Tensor, ...]]:
    """The operation of ssgrl_fast.functional on tensors by name."""

    def call(tensors: Mapping[str, Tensor | None]) -> tuple[Tensor, ...]:
        if stem == "semantic_attention":
            return functional.semantic_attention(**tensors, backend=backend)
        if stem == "label_scores":
            return (functional.label_scores(**tensors, backend=backend),)
        options = {"steps": steps, "reset_gate": variant.reset_gate, "backend": backend}
        if not variant.blocks:
            return (functional.graph_propagation(**tensors, **options),)
        blocks = GateBlocks(**{n: tensors[n] for n in GateBlocks._fields})
        rest = {n: t for n, t in tensors.items() if n not in GateBlocks._fields}
        return (functional.graph_propagation_blocks(**rest, blocks=blocks, **options),)

    return call


def plain(stem: str, variant: Variant, steps: int) -> Callable[..., tuple[Tensor, ...]]:
    """The plain form, differentiated by PyTorch: in float64 the truth, in other dtypes the rival of the 1.2 rule."""

    def call(tensors: Mapping[str, Tensor | None]) -> tuple[Tensor, ...]:
        if stem == "semantic_attention":
            return reference.semantic_attention(**tensors)
        if stem == "label_scores":
            return (reference.label_scores(**tensors),)
        packed = pack(tensors) if variant.blocks else tensors
        return (reference.graph_propagation(**packed, steps=steps, reset_gate=variant.reset_gate),)

    return call


def leaves_of(inputs: Mapping[str, Tensor | None], needs: tuple[str, ...] | None = None) -> Inputs:
    """Leaves on the memory and strides of the inputs; all but the adjacency require a gradient, or those named."""
    leaves: Inputs = {}
    for name, t in inputs.items():
        wanted = name != "adjacency" if needs is None else name in needs
        leaves[name] = None if t is None else t.detach().requires_grad_(wanted)
    return leaves


def upstream_of(outputs: tuple[Tensor, ...], seed: int) -> list[Tensor]:
    """Gradients of the outputs, drawn in float64 and rounded."""
    return [shapes.normal(shapes.generator(5000 + 10 * seed + i), *o.shape).to(o.dtype) for i, o in enumerate(outputs)]


def evaluate(
    stem: str, call: Callable[..., tuple[Tensor, ...]], leaves: Mapping[str, Tensor | None], upstream: list[Tensor]
) -> dict[str, Tensor]:
    """Outputs and gradients by name, "pooled" and "d_u"; a leaf that got no gradient has no entry."""
    outputs = call(leaves)
    assert len(outputs) == len(OUTPUTS[stem])
    torch.autograd.backward(list(outputs), upstream)
    results = {n: o.detach() for n, o in zip(OUTPUTS[stem], outputs, strict=True)}
    return results | {f"d_{n}": t.grad for n, t in leaves.items() if t is not None and t.grad is not None}


class _Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / ctx.saved_tensors[0].cosh().square()


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x = ctx.saved_tensors[0]
        return grad * torch.sigmoid(x) * torch.sigmoid(-x)


class ExactSlopes(TorchFunctionMode):
    """Derivatives of tanh and sigmoid without the cancellation of 1 - t² and 1 - s, which costs PyTorch's own digits of
    the truth where everything saturates."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tanh, Tensor.tanh, torch.sigmoid, Tensor.sigmoid):
            return (_Tanh if "tanh" in func.__name__ else _Sigmoid).apply(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Comparison:
    """What an operation, the float64 truth and the plain form give on one seed, by name."""

    result: dict[str, Tensor]
    truth: dict[str, Tensor]
    plain: dict[str, Tensor]


@dataclass(frozen=True)
class Expectation:
    """One seed of an operation: its inputs, the gradients of its outputs, its float64 truth and its plain form."""

    inputs: Inputs
    upstream: list[Tensor]
    truth: dict[str, Tensor]
    plain: dict[str, Tensor]


@lru_cache(maxsize=400)
def expected_results(
    stem: str, shape: Shape, dtype: torch.dtype, variant: Variant, seed: int, change: Callable[[Inputs], Inputs] | None
) -> Expectation:
    """The inputs, and what the reference gives for them. Kept for the next backend of a parametrised test."""
    inputs = inputs_of(stem, shape, dtype, seed, variant)
    inputs = inputs if change is None else change(inputs)
    simple = plain(stem, variant, shape.T)
    with torch.no_grad():
        upstream = upstream_of(simple(inputs), seed)
    with ExactSlopes():
        truth = evaluate(stem, simple, leaves_of(shapes.truth_of(inputs)), [g.double() for g in upstream])
    return Expectation(inputs, upstream, truth, evaluate(stem, simple, leaves_of(inputs), upstream))


def compare(
    stem: str,
    shape: Shape,
    dtype: torch.dtype,
    backend: str,
    variant: Variant = PLAIN,
    seed: int = 0,
    layout: str | Sequence[str | None] | None = None,
    change: Callable[[Inputs], Inputs] | None = None,
) -> Comparison:
    """Make inputs, run the reference in float64 and the plain form, then the operation; forward and every gradient.

    layout lays the operation's own inputs out anew; change replaces the inputs of all three.
    """
    skip_unless_it_runs(backend, dtype)
    expected = expected_results(stem, shape, dtype, variant, seed, change)
    mine = leaves_of(expected.inputs if layout is None else shapes.relaid(expected.inputs, layout))
    result = evaluate(stem, fused(stem, variant, shape.T, backend), mine, expected.upstream)
    assert set(result) == set(expected.truth), (
        f"gradients of {set(result) ^ set(expected.truth)} differ in being there at all"
    )
    for name, tensor in result.items():
        assert tensor.dtype == expected.plain[name].dtype and tensor.shape == expected.truth[name].shape, name
    return Comparison(result, expected.truth, expected.plain)


def assert_within_budget(
    stem: str, dtype: torch.dtype, comparisons: Sequence[Comparison], but: tuple[str, ...] = (), pooled: bool = False
) -> None:
    """Hold every output and gradient to its budget.

    float64 and float32 are held comparison by comparison, or pooled; the reduced dtypes always pooled, their tensors at
    unit root mean square, so that every element of every shape counts alike, and those whose truth is exactly zero in
    a pool of their own, for which the rule is absolute. but: names left out.
    """
    names = sorted({name for c in comparisons for name in c.truth if name not in but})
    for name in names:
        options: dict[str, Any] = {"operation": stem, "gradient": name.startswith("d_"), "dtype": dtype}
        triples = [(c.result[name], c.truth[name], c.plain[name]) for c in comparisons if name in c.truth]
        if dtype in (torch.float64, torch.float32):
            pools = [triples] if pooled else [[triple] for triple in triples]
        else:
            scales = [truth.square().mean().sqrt() for _, truth, _ in triples]
            scaled = [[t.double() / s for t in triple] for triple, s in zip(triples, scales, strict=True) if s > 0]
            pools = [[triple for triple in triples if not triple[1].any()], scaled]
        for pool in pools:
            if pool:
                results, truths, rivals = (list(column) for column in zip(*pool, strict=True))
                testing.assert_close_to_truth(f"{stem} {name}", results, truths, rivals, **options)


def bits(tensor: Tensor) -> Tensor:
    """A tensor as integers, so that equality is that of bits, NaN included."""
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(sizes[tensor.element_size()])


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within the block PyTorch fills every new uninitialised tensor with NaN, those of compiled operators included."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_poisoned_memory_changes_nothing(
    stem: str, shape: Shape, dtype: torch.dtype, backend: str, variant: Variant = PLAIN
) -> None:
    """Scratch and outputs that start as NaN change no bit of any output or gradient."""
    clean = compare(stem, shape, dtype, backend, variant).result
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
        poisoned = compare(stem, shape, dtype, backend, variant).result
    for name, tensor in clean.items():
        assert torch.isfinite(poisoned[name]).all(), name
        assert torch.equal(bits(tensor), bits(poisoned[name])), name


class Recorder(TorchDispatchMode):
    """Records which operators of this project ran."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "ssgrl_fast":
            self.operators.append(func.name().removeprefix("ssgrl_fast::"))
        return func(*args, **(kwargs or {}))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch's intra-op thread count within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
