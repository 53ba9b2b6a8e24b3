"""A replayed call starts what the plain call starts, on its own arguments and on fresh memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

if sys.platform != "linux":
    pytest.skip("triton is for Linux", allow_module_level=True)
triton = pytest.importorskip("triton")

from stubbed_launches import Computed, address, forgotten, scale  # noqa: E402, F401

import ssgrl_fast  # noqa: E402, F401
from benchmarks.harness import stub_driver  # noqa: E402
from ssgrl_fast.backends.triton import NAMESPACE  # noqa: E402
from ssgrl_fast.kernels import launch, replay, tile_tables  # noqa: E402
from ssgrl_fast.kernels import plans as plans_module  # noqa: E402
from ssgrl_fast.kernels.activations import INTERPRETED  # noqa: E402

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter launches nothing"),
    pytest.mark.usefixtures("forgotten"),
]
FOREIGN = torch.ones(128)


@pytest.fixture
def started() -> Iterator[list[Any]]:
    """Launches of the small kernel are computed."""
    with stub_driver.active(into=Computed()) as found, tile_tables.assumed("sm_90"):
        yield found


def plans() -> list[plans_module.Plan | None]:
    return list(replay._plans.values())


class Counted:
    """A function as an operator's, and how often it ran."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.runs = function, 0
        self.operator = replay.replayed(function.__name__, self)

    def __call__(self, *arguments: Any) -> Any:
        self.runs += 1
        return self.function(*arguments)


def chained(x: Tensor, others: list[Tensor], factor: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """2·factor·x in the second row of [2, n] and factor·x in the first, 2·others, and nothing."""
    scratch, unused, out = torch.empty_like(x), x.new_empty(3), x.new_empty(2, len(x))
    scale(x, scratch, factor)
    scale(scratch, out[1])
    out[0].copy_(scratch)
    doubled = [other.new_empty(len(other)) for other in others]
    for other, twice in zip(others, doubled, strict=True):
        scale(other, twice)
    return out[1], doubled, unused[:0].clone()


def check_chained(result: Any, x: Tensor, others: list[Tensor], factor: int) -> None:
    row, doubled, nothing = result
    assert isinstance(result, tuple) and isinstance(doubled, list) and nothing.shape == (0,)
    assert torch.equal(row, 2 * factor * x) and row.storage_offset() == len(x)
    assert torch.equal(row._base[0], factor * x)
    assert all(torch.equal(twice, 2 * other) for twice, other in zip(doubled, others, strict=True))


def test_results_on_other_arguments_in_fresh_memory(started: list[Any]) -> None:
    counted, kept = Counted(chained), []
    for _ in range(4):
        x, others = torch.randn(192), [torch.randn(384)[::2], torch.randn(64)]
        kept.append((counted.operator(x, others, 3), x, others, 3))
    assert counted.runs == 1 and len(started) == 16
    for values in kept:  # earlier results are as they were
        check_chained(*values)
    places = [t.untyped_storage().data_ptr() for (row, doubled, _), *_ in kept for t in (row, *doubled)]
    assert len(set(places)) == 12


def test_arguments_in_the_same_memory(started: list[Any]) -> None:
    """Overlapping arguments are never noted, since an address would not tell which of them it is of; they are
    replayed."""
    counted, whole = Counted(chained), torch.randn(192)
    for _ in range(2):
        check_chained(counted.operator(whole, [whole[64:]], 3), whole, [whole[64:]], 3)
    assert counted.runs == 2 and not plans()
    x, others = whole[:64].clone(), [whole[64:]]
    beside = whole[:128], [whole[128:]]  # the same memory, apart
    check_chained(counted.operator(*beside, 3), *beside, 3)
    check_chained(counted.operator(whole.clone(), others, 3), whole, others, 3)
    assert counted.runs == 4 and len(plans()) == 2
    check_chained(counted.operator(whole, [whole[64:]], 3), whole, [whole[64:]], 3)
    check_chained(counted.operator(torch.cat([x, x]), [x], 3), torch.cat([x, x]), [x], 3)
    assert counted.runs == 4


def test_another_signature_is_another_plan(started: list[Any]) -> None:
    counted, x = Counted(chained), torch.randn(400)
    variants: list[tuple[Tensor, list[Tensor], int]] = [
        (x[:64], [x[64:128]], 3),
        (x[:32], [x[64:128]], 3),  # size
        (x[:128:2], [x[128:192]], 3),  # stride
        (x[1:65], [x[65:129]], 3),  # alignment
        (x[:64], [x[64:128]], 4),  # option
        (x[:64], [x[64:128], x[128:192]], 3),  # length of the list
    ]
    for _ in range(2):
        for variant in variants:
            check_chained(counted.operator(*variant), *variant)
    assert counted.runs == len(plans()) == len(variants)
    with tile_tables.assumed("sm_80"):
        check_chained(counted.operator(*variants[0]), *variants[0])
    assert counted.runs == len(variants) + 1


def with_operators(x: Tensor) -> tuple[Tensor, Tensor]:
    """2·(x + x)·sum of x·xᵀ, and views of an operator's result beside a launch's into it."""
    both, out = torch.stack([x, x]), torch.empty_like(x)
    total = x.view(8, -1).mm(x.view(-1, 8)).sum()
    scale(both.sum(0), out)
    scale(x, both[1], 5)
    return out.mul_(total), both[:, 2:]


def test_operators_with_results_of_their_own(started: list[Any]) -> None:
    counted = Counted(with_operators)
    for _ in range(3):
        x = torch.randn(128)
        scaled, both = counted.operator(x)
        torch.testing.assert_close(scaled, 4 * x * (x.view(8, -1) @ x.view(-1, 8)).sum())
        assert torch.equal(both, torch.stack([x, 5 * x])[:, 2:]) and both.storage_offset() == 2
    assert counted.runs == 1
    with torch.autocast("cpu"):
        counted.operator(x)
    assert counted.runs == 2


def test_calls_with_much_memory_run_every_time(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(with_operators)
    for most in (2 * 128 * 4, 4096):  # the stacked rows are an output
        replay.forget()
        monkeypatch.setattr(plans_module, "_MOST_MEMORY", most)
        counted.operator(torch.randn(128))
        assert isinstance(plans()[0], plans_module.Plan) == (most == 4096)


def reads_a_value(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    scale(x, out, 2 if x[0].item() > 0 else 3)
    return out


def foreign_memory(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    scale(FOREIGN, out)
    return out


def part_of_an_argument(x: Tensor) -> Tensor:
    scale(x, torch.empty_like(x))
    return x[:2]


def an_option(x: Tensor) -> tuple[Tensor, int]:
    out = torch.empty_like(x)
    scale(x, out)
    return out, 1


PLAIN = (reads_a_value, foreign_memory, part_of_an_argument, an_option)


@pytest.mark.parametrize("function", PLAIN, ids=lambda function: function.__name__)
def test_what_is_not_memory_of_the_call_runs_every_time(function: Callable[..., Any], started: list[Any]) -> None:
    counted = Counted(function)
    for sign in (1, -1, 1):
        x = sign * torch.rand(128).add_(1)
        torch.testing.assert_close(counted.operator(x), function(x))
    assert counted.runs == 3 and plans() == [None]


def test_onlookers_see_the_plain_call(started: list[Any]) -> None:
    """A profiler's hook, and a dispatch mode; a list of recorded launches."""
    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func._opname)
            return func(*args, **(kwargs or {}))

    def hook(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    counted, x = Counted(chained), torch.randn(64)
    hooks = triton.knobs.runtime.launch_enter_hook
    hooks.add(hook)
    try:
        counted.operator(x, [], 3)
    finally:
        hooks.remove(hook)
    assert seen == ["scale_kernel"] * 2 and not plans()
    counted.operator(x, [], 3)
    seen.clear()
    with Mode():
        check_chained(counted.operator(x, [], 3), x, [], 3)
    assert "copy_" in seen and counted.runs == 3
    with launch.recorded() as recorded:
        counted.operator(x, [], 3)
    assert len(recorded) == 2 and counted.runs == 4
    check_chained(counted.operator(x, [], 3), x, [], 3)
    assert counted.runs == 4


def test_launches_of_other_threads_are_not_noted(started: list[Any]) -> None:
    def slow(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        other = threading.Thread(target=lambda: scale(torch.ones(64), torch.empty(64)))
        other.start()
        other.join()
        scale(x, out)
        return out

    counted = Counted(slow)
    for _ in range(2):
        x = torch.randn(128)
        assert torch.equal(counted.operator(x), 2 * x)
    assert counted.runs == 1 and len(started) == 3


def test_an_error_is_not_remembered(started: list[Any]) -> None:
    def fails_once(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        if counted.runs == 1:
            raise MemoryError("full")
        scale(x, out)
        return out

    counted, x = Counted(fails_once), torch.randn(64)
    with pytest.raises(MemoryError, match="full"):
        counted.operator(x)
    assert launch.here.noted is None and not plans()
    assert torch.equal(counted.operator(x), 2 * x) and len(plans()) == 1


def test_memory_of_less_alignment(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    counted, x = Counted(chained), torch.randn(64)
    counted.operator(x, [], 3)
    own = torch.empty_strided
    monkeypatch.setattr(torch, "empty_strided", lambda size, stride, **kind: own((2, 65), (65, 1), **kind)[:, 1:])
    check_chained(counted.operator(x, [], 3), x, [], 3)
    assert counted.runs == 2 and len(started) == 4


def test_the_number_of_plans_is_bounded(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_MOST_PLANS", 3)
    counted = Counted(chained)
    for size in (16, 32, 48, 64, 80, 16):
        x = torch.randn(size)
        check_chained(counted.operator(x, [], 3), x, [], 3)
        assert len(plans()) <= 3
    assert counted.runs == 6


# The operators themselves, in bfloat16.


def attention_arguments(classes: int) -> tuple[Any, ...]:
    return torch.randn(1, 4, 48).bfloat16(), torch.randn(classes, 48).bfloat16(), torch.randn(48), features()


def features() -> Tensor:
    return torch.randn(1, 4, 128).bfloat16()


def propagation_arguments(classes: int, biased: bool, save: bool) -> tuple[Any, ...]:
    h0, adjacency, attention = torch.randn(1, classes, 128), torch.rand(classes, classes), torch.rand(1, classes, 4)
    weights = [torch.randn(256, 384).bfloat16(), torch.randn(128, 384).bfloat16()]
    biases = [torch.randn(256).bfloat16(), torch.randn(128).bfloat16()] if biased else []
    return h0.bfloat16(), adjacency.bfloat16(), attention, features(), weights, biases, 2, False, save


def scores_arguments(biased: bool, save: bool) -> tuple[Any, ...]:
    h_T, h0 = torch.randn(2, 1, 16, 128).bfloat16().unbind()
    weights = torch.randn(128, 256).bfloat16(), torch.randn(16, 128).bfloat16()
    biases = (torch.randn(128).bfloat16(), torch.randn(16).bfloat16()) if biased else (None, None)
    return h_T, h0, torch.rand(1, 16, 4), features(), weights[0], biases[0], weights[1], biases[1], save


def attention_gradients() -> tuple[Any, ...]:
    u, v, p, rows = attention_arguments(16)
    return torch.randn(1, 16, 128).bfloat16(), None, u, v, p, rows, torch.rand(1, 16, 4), True


def propagation_gradients() -> tuple[Any, ...]:
    *arguments, steps, tied, _ = propagation_arguments(16, True, True)
    saved = [torch.randn(2, 16, 512).bfloat16(), torch.randn(2, 16, 384).bfloat16(), torch.randn(32, 128).bfloat16()]
    return torch.randn(1, 16, 128).bfloat16(), *arguments, saved, steps, tied, True


def scores_gradients() -> tuple[Any, ...]:
    h_T, h0, attention, rows, weight_o, _, weight_c, *_ = scores_arguments(True, True)
    saved = [torch.randn(16, 128).bfloat16(), torch.randn(0).bfloat16()]
    return torch.randn(1, 16).bfloat16(), h_T, h0, attention, rows, weight_o, weight_c, saved, False


CALLS: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "attention": ("semantic_attention", lambda: attention_arguments(16)),
    "propagation": ("graph_propagation", lambda: propagation_arguments(16, False, False)),
    "propagation, training, rows to be aligned": ("graph_propagation", lambda: propagation_arguments(20, True, True)),
    "scores": ("label_scores", lambda: scores_arguments(True, False)),
    "scores, training": ("label_scores", lambda: scores_arguments(False, True)),
    "gradients of attention": ("semantic_attention_backward", attention_gradients),
    "gradients of propagation": ("graph_propagation_backward", propagation_gradients),
    "gradients of scores": ("label_scores_backward", scores_gradients),
}


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def roles(launches: list[Any], named: list[Tensor]) -> list[Any]:
    """Launches with the number of the named tensor and the offset for an address in it, and for other addresses a
    number in the order of their first appearance."""
    others: dict[int, str] = {}

    def role(value: Any, is_pointer: bool) -> Any:
        if not is_pointer:
            return value
        at = address(value)
        for i, tensor in enumerate(named):
            if 0 <= at - tensor.data_ptr() < tensor.numel() * tensor.itemsize:
                return i, at - tensor.data_ptr()
        return others.setdefault(at, f"memory {len(others)}") if at else 0

    return [(name, grid, [role(v, p) for v, p in zip(*values, strict=True)]) for name, grid, *values in launches]


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.thorough) if "gradients" in name else name for name in CALLS]
)
def test_operators_start_the_same_kernels_again(case: str) -> None:
    name, make = CALLS[case]
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    with stub_driver.active() as started, tile_tables.assumed("sm_90"):
        calls = []
        for _ in range(3):
            arguments = make()
            calls.append((arguments, operator(*arguments), list(started)))
            started.clear()
        assert len(plans()) == 1 and isinstance(plans()[0], plans_module.Plan)
        (arguments, result, plain), *again = calls
        pointers = [[isinstance(value, Tensor) for value in values] for _, _, values in plain]
        expected = roles([(*one, own) for one, own in zip(plain, pointers, strict=True)], tensors([arguments, result]))
        assert any(isinstance(place, tuple) for _, _, values in expected for place in values)
        for other, outputs, launches in again:
            assert all(
                type(v) is int for *_, values in launches for v, p in zip(values, pointers[0], strict=False) if p
            )
            launches = [(*one, own) for one, own in zip(launches, pointers, strict=True)]
            assert roles(launches, tensors([other, outputs])) == expected
            same = [(t.shape, t.stride(), t.dtype) for t in tensors(outputs)]
            assert same == [(t.shape, t.stride(), t.dtype) for t in tensors(result)]
        fresh = [t.data_ptr() for _, outputs, _ in calls for t in tensors(outputs) if t.numel()]
        assert len(set(fresh)) == len(fresh)
        assert_apart([values for *_, values in plain], [values for *_, values in again[0][2]])


def assert_apart(plain: list[Any], again: list[Any]) -> None:
    """Addresses have the distances of the plain call within one allocation, and ranges of different ones are apart."""
    found: dict[int, tuple[int, int]] = {}  # storage -> its replayed start and end
    for values, others in zip(plain, again, strict=True):
        for tensor, at in zip(values, others, strict=True):
            if isinstance(tensor, Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                start = at - (tensor.data_ptr() - storage.data_ptr())
                assert found.setdefault(storage._cdata, (start, start + storage.nbytes())) == (
                    start,
                    start + storage.nbytes(),
                )
    ranges = sorted(found.values())
    assert len(ranges) > 3
    assert all(first[1] <= second[0] for first, second in zip(ranges, ranges[1:], strict=False))
