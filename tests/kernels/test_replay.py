"""A replayed call starts what the plain call starts, on its own arguments and on fresh memory."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

if sys.platform != "linux":
    pytest.skip("triton is for Linux", allow_module_level=True)
triton = pytest.importorskip("triton")

from stubbed_launches import Computed, forgotten, scale  # noqa: E402, F401

from benchmarks.harness import stub_driver  # noqa: E402
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


def plans() -> list[plans_module.Plan | bool]:
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
    assert counted.runs == 2 and len(started) == 16  # the second is noted
    for values in kept:  # earlier results are as they were
        check_chained(*values)
    places = [t.untyped_storage().data_ptr() for (row, doubled, _), *_ in kept for t in (row, *doubled)]
    assert len(set(places)) == 12


def test_a_plan_keeps_no_memory(started: list[Any]) -> None:
    seen: list[weakref.ref[Tensor]] = []

    def watched(x: Tensor) -> Tensor:
        scratch, out = torch.empty_like(x), torch.empty_like(x)
        both = torch.stack([x, x])
        scale(both[0], scratch)
        scale(scratch, out)
        seen.extend(map(weakref.ref, (x, scratch, both, out)))
        return out

    counted, x = Counted(watched), torch.randn(64)
    for _ in range(2):
        assert torch.equal(counted.operator(x), 4 * x)
    started.clear()  # it has the arguments
    del x
    assert counted.runs == 2 and isinstance(plans()[0], plans_module.Plan)
    assert [one() for one in seen] == [None] * 8


def test_arguments_in_the_same_memory(started: list[Any]) -> None:
    """Overlapping arguments are never noted, since an address would not tell which of them it is of; they are
    replayed."""
    counted, whole = Counted(chained), torch.randn(192)
    for _ in range(2):
        check_chained(counted.operator(whole, [whole[64:]], 3), whole, [whole[64:]], 3)
    assert counted.runs == 2 and plans() == [False]
    beside = whole[:128], [whole[128:]]  # the same memory, apart
    for _ in range(2):
        check_chained(counted.operator(*beside, 3), *beside, 3)
    check_chained(counted.operator(whole.clone(), [whole[64:]], 3), whole, [whole[64:]], 3)
    assert counted.runs == 5 and all(isinstance(plan, plans_module.Plan) for plan in plans())
    check_chained(counted.operator(whole, [whole[64:]], 3), whole, [whole[64:]], 3)
    check_chained(counted.operator(whole[:128], [whole[32:96]], 3), whole[:128], [whole[32:96]], 3)
    assert counted.runs == 5


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
    for _ in range(3):
        for variant in variants:
            check_chained(counted.operator(*variant), *variant)
    assert counted.runs == 2 * len(plans()) == 2 * len(variants)
    with tile_tables.assumed("sm_80"):
        check_chained(counted.operator(*variants[0]), *variants[0])
    assert counted.runs == 2 * len(variants) + 1


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
    assert counted.runs == 2
    with torch.autocast("cpu"):
        counted.operator(x)
    assert counted.runs == 3


def results_by_address(x: Tensor) -> Tensor:
    """2·(x + i) in row i: operators' results of which launches alone make use, after all operators."""
    sums = [x + i for i in range(8)]
    out = x.new_empty(8, len(x))
    for one, row in zip(sums, out, strict=True):
        scale(one, row)
    return out


def test_operators_results_live_until_the_call_ends(started: list[Any]) -> None:
    """Memory of a result that was given back would be that of the next one, before a launch has read it."""
    counted = Counted(results_by_address)
    for _ in range(4):
        x = torch.randn(128)
        assert torch.equal(counted.operator(x), 2 * (x + torch.arange(8)[:, None]))
    assert counted.runs == 2 and isinstance(plans()[0], plans_module.Plan)


def test_calls_with_much_memory_run_every_time(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(with_operators)
    for most in (2 * 128 * 4, 4096):  # the stacked rows are an output
        replay.forget()
        monkeypatch.setattr(plans_module, "_MOST_MEMORY", most)
        for _ in range(2):
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
    for sign in (1, -1, 1, -1):
        x = sign * torch.rand(128).add_(1)
        torch.testing.assert_close(counted.operator(x), function(x))
    assert counted.runs == 4 and plans() == [True]


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
    for _ in range(2):
        counted.operator(x, [], 3)
    seen.clear()
    with Mode():
        check_chained(counted.operator(x, [], 3), x, [], 3)
    assert "copy_" in seen and counted.runs == 4
    with launch.recorded() as recorded:
        counted.operator(x, [], 3)
    assert len(recorded) == 2 and counted.runs == 5
    check_chained(counted.operator(x, [], 3), x, [], 3)
    assert counted.runs == 5


def test_launches_of_other_threads_are_not_noted(started: list[Any]) -> None:
    def slow(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        other = threading.Thread(target=lambda: scale(torch.ones(64), torch.empty(64)))
        other.start()
        other.join()
        scale(x, out)
        return out

    counted = Counted(slow)
    for _ in range(3):
        x = torch.randn(128)
        assert torch.equal(counted.operator(x), 2 * x)
    assert counted.runs == 2 and len(started) == 5


def test_an_error_is_not_remembered(started: list[Any]) -> None:
    def fails_once(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        if counted.runs == 2:
            raise MemoryError("full")
        scale(x, out)
        return out

    counted, x = Counted(fails_once), torch.randn(64)
    counted.operator(x)
    with pytest.raises(MemoryError, match="full"):
        counted.operator(x)
    assert launch.here.noted is None and plans() == [False]
    assert torch.equal(counted.operator(x), 2 * x) and isinstance(plans()[0], plans_module.Plan)


def test_memory_of_less_alignment(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    counted, x = Counted(chained), torch.randn(64)
    for _ in range(2):
        counted.operator(x, [], 3)
    own = torch.empty_strided
    monkeypatch.setattr(torch, "empty_strided", lambda size, stride, **kind: own((2, 65), (65, 1), **kind)[:, 1:])
    check_chained(counted.operator(x, [], 3), x, [], 3)
    assert counted.runs == 3 and len(started) == 6


def test_the_number_of_plans_is_bounded(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_MOST_PLANS", 3)
    counted = Counted(chained)
    for size in (16, 32, 48, 64, 80, 16):
        x = torch.randn(size)
        check_chained(counted.operator(x, [], 3), x, [], 3)
        assert len(plans()) <= 3
    assert counted.runs == 6
