"""The Triton backend's operators in bfloat16: a replayed call starts the kernels of the plain call (test_replay.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

if sys.platform != "linux":
    pytest.skip("triton is for Linux", allow_module_level=True)
pytest.importorskip("triton")

from stubbed_launches import address, forgotten  # noqa: F401

import ssgrl_fast  # noqa: F401
from benchmarks.harness import stub_driver
from ssgrl_fast.backends.triton import NAMESPACE
from ssgrl_fast.kernels import plans, replay, tile_tables
from ssgrl_fast.kernels.activations import INTERPRETED

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter launches nothing"),
    pytest.mark.usefixtures("forgotten"),
]


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


QUICK = ("attention", "propagation, training, rows to be aligned", "scores, training")


@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.thorough) for name in CALLS]
)
def test_operators_start_the_same_kernels_again(case: str) -> None:
    name, make = CALLS[case]
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    with stub_driver.active() as started, tile_tables.assumed("sm_90"):
        calls = []
        for _ in range(4):
            arguments = make()
            calls.append((arguments, operator(*arguments), list(started)))
            started.clear()
        (plan,) = replay._plans.values()
        assert isinstance(plan, plans.Plan)
        (arguments, result, plain), _, *again = calls  # the second was noted
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
