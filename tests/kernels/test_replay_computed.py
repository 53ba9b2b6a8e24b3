"""Every operator's replayed call computes what its function computes, to the bit: launches and PyTorch's operators are
carried out, kernels at their addresses by Triton's interpreter, in memory that begins as NaN."""

from __future__ import annotations

import ctypes
import importlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

if sys.platform != "linux":
    pytest.skip("triton is for Linux", allow_module_level=True)
pytest.importorskip("triton")
from triton.runtime.interpreter import InterpretedFunction

from benchmarks.harness import stub_driver
from ssgrl_fast.kernels import launch, replay
from ssgrl_fast.kernels import plans as plans_module
from ssgrl_fast.kernels.activations import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter: TRITON_INTERPRET=1")
STEMS = ("semantic_attention", "graph_propagation", "label_scores")


class Compiled:
    """What Triton gives for a compiled kernel; its launcher interprets the kernel, on tensors or on addresses."""

    function = packed_metadata = None

    def __init__(self, kernel: Any, arguments: dict[str, Any], interpret: Callable[..., Any]) -> None:
        self.kernel, self.interpret = kernel, interpret
        self.types = {name: one.dtype for name, one in arguments.items() if isinstance(one, Tensor)}

    def run(self, *values: Any) -> None:
        named = dict(zip(self.kernel.arg_names, values[9:], strict=True))
        for name, dtype in self.types.items():
            if type(at := named[name]) is int:  # of any size: the interpreter takes the address
                named[name] = (
                    torch.frombuffer((ctypes.c_char * 8).from_address(at), dtype=dtype) if at else torch.empty(0)
                )
        self.interpret(self.kernel, grid=values[:3], warmup=False, **named)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls are replayed, and every launch goes by the launcher of a compiled kernel."""
    interpret = InterpretedFunction.run

    def carry_out(kernel: Any, *, grid: Any, warmup: bool, **arguments: Any) -> None:
        with _disable_current_modes():  # PyTorch's operators within the interpreter are not the call's
            interpret(kernel, grid=grid, warmup=warmup, **arguments)

    def run(kernel: Any, *, grid: Any, warmup: bool, **arguments: Any) -> Compiled:
        carry_out(kernel, grid=grid, warmup=warmup, **arguments)
        return Compiled(kernel, arguments, carry_out)

    monkeypatch.setattr(InterpretedFunction, "run", run)
    monkeypatch.setattr(launch, "JITFunction", InterpretedFunction)
    monkeypatch.setattr(replay, "INTERPRETED", False)
    monkeypatch.setattr(launch, "_known", {})
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory begins as NaN
    try:
        with stub_driver.active():
            yield
    finally:
        torch.use_deterministic_algorithms(False)


class Draw:
    """Random sizes, options and layouts of one signature; every call of :meth:`arguments` has other values."""

    def __init__(self, seed: int) -> None:
        self.seed, choose = seed, random.Random(seed).choice
        self.stem = choose(STEMS)
        self.dtype = choose([torch.float16, torch.float16, torch.float16, torch.float32, torch.float64])
        self.exact = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.B, self.C, self.L = choose([0, 1, 1, 2, 3]), choose([1, 4, 16, 21]), choose([1, 4, 9, 65, 130])
        self.D, self.K, self.O = choose([16, 24, 128, 128]), choose([16, 20, 48]), choose([16, 64, 70])
        self.steps, (self.tied, self.blocks) = choose([1, 2, 3]), (choose([False, False, True]) for _ in range(2))
        self.save, self.biased, self.factored, self.need, self.given = (choose([False, True]) for _ in range(5))

    def arguments(self, alike: bool) -> tuple[Any, ...]:
        """The forward's. ``alike``: those that agree in shape and layout are one tensor."""
        B, C, L, D, K, O = self.B, self.C, self.L, self.D, self.K, self.O
        layouts, made = random.Random(self.seed + 1), dict[Any, Tensor]()

        def new(*shape: int, exact: bool = False) -> Tensor:
            dtype, way = self.exact if exact else self.dtype, layouts.choice(LAYOUTS)
            one = laid_out((torch.randn(shape, dtype=torch.float64) * 0.3).to(dtype), way)
            return made.setdefault((shape, dtype, way), one) if alike else one

        if self.stem == "semantic_attention":
            return new(B, L, K), new(C, K), new(K, exact=True), new(B, L, D)
        factors = (new(B, C, L, exact=True), new(B, L, D)) if self.factored else (None, None)
        h = new(B, C, D)
        if self.stem == "label_scores":
            weight_o, bias_o = new(O, 2 * D), new(O) if self.biased else None
            return h, new(B, C, D), *factors, weight_o, bias_o, new(C, O), new(C) if self.biased else None, self.save
        columns = [(1, 2), (1, 1), (1, 2), (1, 1), (1, 2), (1, 1)] if self.blocks else [(2, 3), (1, 3)]
        weights = [new(n * D, m * D) for n, m in columns]
        biases = [new(n * D) for n in ([1, 1, 1] if self.blocks else [2, 1]) if self.biased]
        return h, new(C, C), *factors, weights, biases, self.steps, self.tied, self.save


LAYOUTS = ("plain", "offset", "wide", "turned", "expanded")


def laid_out(values: Tensor, way: str) -> Tensor:
    if way == "offset":
        return torch.empty(values.numel() + 1, dtype=values.dtype)[1:].view(values.shape).copy_(values)
    if way == "wide":
        wide = torch.empty(*values.shape[:-1], 2 * values.shape[-1] + 3, dtype=values.dtype)
        return wide[..., 1 : values.shape[-1] + 1].copy_(values)
    if way == "turned":
        return values.mT.contiguous().mT if values.dim() > 1 else values.repeat_interleave(2)[::2]
    if way == "expanded" and values.shape[0]:
        return values[:1].clone().expand(values.shape)
    return values


def gradients_of(draw: Draw, forward: tuple[Any, ...], result: Sequence[Any]) -> tuple[Any, ...]:
    """The backward's arguments after a forward that saved."""
    grads = [torch.randn(result[0].shape, dtype=torch.float64).to(draw.dtype) * 0.3]
    if draw.given:
        grads[0] = grads[0][..., :1].expand(result[0].shape)
    if draw.stem == "semantic_attention":
        attention = result[1]
        second = torch.randn(attention.shape, dtype=torch.float64).to(attention.dtype)
        both = [(grads[0], None), (grads[0], second), (None, second)][draw.seed % 3]
        return *both, *forward, attention, draw.need
    if draw.stem == "label_scores":
        h_T, h0, attention, features, weight_o, _, weight_c, _, _ = forward
        return *grads, h_T, h0, attention, features, weight_o, weight_c, list(result[1:]), draw.need
    *tensors, steps, tied, _ = forward
    return *grads, *tensors, list(result[1:]), steps, tied, draw.need


def tensors_of(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def same(first: Any, second: Any) -> bool:
    pairs = list(zip(tree_leaves(first), tree_leaves(second), strict=True))
    return all(
        (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype) and torch.equal(a, b) and not a.isnan().any()
        for a, b in pairs
    )


QUICK = (8, 17, 28, 53, 184)
SEEDS = (*range(60), 61, 96, 182, 184)
"""The last ones are float16 with products that have their gates in the epilogue."""


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{'quick' if seed in QUICK else 'seed'}{seed}")
@pytest.mark.usefixtures("computed")
def test_replayed_operators_compute_the_same(seed: int) -> None:
    draw, kept = Draw(seed), []
    module, plans = importlib.import_module(f"ssgrl_fast.kernels.{draw.stem}"), replay._plans
    operators = [replay.replayed(direction, getattr(module, direction)) for direction in ("forward", "backward")]
    for call in range(4):
        torch.manual_seed(10 * seed + call)
        forward = draw.arguments(alike=call == 3)
        saving = forward if draw.stem == "semantic_attention" else (*forward[:-1], True)
        backward = gradients_of(draw, forward, module.forward(*saving))
        given = tensors_of([forward, backward])
        before = [t.clone() for t in given]
        for operator, function, arguments in zip(
            operators, (module.forward, module.backward), (forward, backward), strict=True
        ):
            kept.append((operator(*arguments), function(*arguments)))
            assert same(*kept[-1]), vars(draw)
        assert all(map(torch.equal, given, before))
    assert all(same(*pair) for pair in kept)  # no call wrote to another's results
    own = [{t.untyped_storage().data_ptr() for t in tensors_of(result) if t.numel()} for result, _ in kept]
    assert sum(map(len, own)) == len(set().union(*own))
    empty = not draw.B or (draw.steps == 1 and draw.factored and draw.stem == "graph_propagation")  # views of nothing
    assert [type(plan) for plan in plans.values()] == [plans_module.Plan] * 2 or empty
