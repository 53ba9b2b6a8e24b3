"""The benchmarks' meters: what the products alone count, how rivals are interleaved, and what memory reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from benchmarks.harness import cases, memory, timing
from benchmarks.harness.cases import Case, Shape
from benchmarks.harness.peak import Peak, is_out_of_memory
from benchmarks.rivals import products

TINY = Shape("tiny", 6, locations=9, channels=32, word_dim=10, joint_dim=16, score_dim=12, out_dim=32)
LOW = replace(TINY, name="tiny-low", classes=40)
MB = 10**6
metered = pytest.mark.skipif(memory.meter_missing() is not None, reason=str(memory.meter_missing()))


# products alone


def units(case: Case) -> tuple[float, float]:
    """(products with weights and expansions, dense aggregation) of a forward in 2·B·C·D² FLOP (docs/kernels.md)."""
    s = case.shape
    C, L, D, K, T = s.classes, s.locations, s.channels, s.joint_dim, s.steps
    projection = L * K / (C * D)
    if not case.factored:
        return 9 * T + 2 + projection, 2 * T * C / D
    return 9 * T + 2 - 9 + 9 * L / C + 9 * L / D + projection, 2 * (T - 1) * C / D + 2 * C * L / D**2


@pytest.mark.parametrize("name", cases.SHAPES)
@pytest.mark.parametrize("batch", [1, 4])
def test_products_alone_count_the_six_identities(name: str, batch: int) -> None:
    case = Case("head", cases.SHAPES[name], batch, "infer")
    unit = 2 * batch * case.shape.classes * case.shape.channels**2
    weighted, aggregation = units(case)
    assert products.flop(case) / unit == pytest.approx(weighted + aggregation, rel=1e-12)
    train = products.flop(replace(case, mode="train")) / unit
    assert train == pytest.approx(3 * weighted + 2 * aggregation, rel=1e-12)


def test_products_alone_at_coco_are_29_units_and_their_small_change() -> None:
    case = Case("head", cases.SHAPES["coco"], 4, "infer")
    assert products.flop(case) / (2 * 4 * 80 * 2048**2) == pytest.approx(29 + 0.23 + 0.51, abs=0.01)


@pytest.mark.parametrize("shape", [TINY, LOW], ids=str)
@pytest.mark.parametrize("mode", cases.MODES)
@pytest.mark.parametrize("operation", ["head", "graph_propagation", "label_scores"])
def test_the_runner_multiplies_what_it_counts(
    shape: Shape, mode: str, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(operation, shape, 2, mode)
    counted = []

    def spy(name: str) -> Callable[..., Tensor]:
        multiply = getattr(torch, name)

        def call(left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
            counted.append(2 * left.numel() * right.shape[-1])
            return multiply(left, right, out=out)

        return call

    monkeypatch.setattr(torch, "mm", spy("mm"))
    monkeypatch.setattr(torch, "bmm", spy("bmm"))
    products.ProductRunner(case)()
    assert sum(counted) == products.flop(case)


# timing


def test_interleaving_is_a_b_a_b() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in "abc"}
    times = timing.interleave(steps, rounds=3, seconds=100)
    assert "".join(order) == "abcabcabc"
    assert {name: len(time.seconds) for name, time in times.items()} == {"a": 3, "b": 3, "c": 3}


class Machine:
    """A clock that a slowing machine drives: each round is twice as slow as the one before."""

    def __init__(self) -> None:
        self.now, self.slow = 0.0, 1.0

    def work(self, seconds: float, last: bool) -> None:
        self.now += seconds * self.slow
        self.slow *= 2.0 if last else 1.0


def test_ratios_are_taken_within_a_round() -> None:
    machine = Machine()
    steps = {"ours": lambda: machine.work(3.0, False), "theirs": lambda: machine.work(6.0, True)}
    times = timing.interleave(steps, rounds=5, seconds=1e9, clock=lambda: machine.now)
    assert times["ours"].seconds == (3.0, 6.0, 12.0, 24.0, 48.0)
    assert times["ours"].ratio(times["theirs"]) == 0.5
    with pytest.raises(ValueError, match="5 rounds against 1"):
        times["ours"].ratio(timing.Timing((1.0,)))


def test_the_budget_ends_a_run_after_the_least_rounds() -> None:
    machine, shares = Machine(), []
    steps = {"a": lambda: machine.work(10.0, False)}
    times = timing.interleave(
        steps,
        rounds=20,
        seconds=15.0,
        least=4,
        clock=lambda: machine.now,
        on_round=lambda done, share: shares.append((done, share)),
    )
    assert len(times["a"].seconds) == 4
    assert [done for done, _ in shares] == [1, 2, 3, 4] and shares[-1][1] == 1.0
    assert all(earlier <= later for (_, earlier), (_, later) in pairwise(shares))


def test_percentiles_are_numpys() -> None:
    values = (0.3, 0.1, 0.25, 0.9, 0.2, 0.4)
    for percent in (20, 50, 80):
        assert timing.Timing(values).percentile(percent) == pytest.approx(numpy.percentile(values, percent))


def test_threads_are_fixed_and_put_back() -> None:
    before = torch.get_num_threads()
    with timing.fixed_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads must be between 1 and"), timing.fixed_threads(10_000):
        raise AssertionError("not reached")


# memory


def peaks(*steps: str) -> list[Peak]:
    """What the meters read of steps of tests/support/meter_steps.py, one after the other in a process of their own."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "meter_steps", *steps]
    paths = {"PYTHONPATH": os.pathsep.join([str(root), str(root / "tests" / "support")])}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | paths, timeout=120)
    assert done.returncode == 0, done.stderr
    return [Peak(**values) for values in json.loads(done.stdout.splitlines()[-1])]


@metered
def test_meters_read_a_known_allocation() -> None:
    first, again = peaks("beside 256", "beside 128")
    assert first.resident == pytest.approx(256 * MB, rel=0.05)
    assert first.allocator == pytest.approx(256 * MB, rel=0.001)
    assert again.resident == pytest.approx(128 * MB, rel=0.05), "the earlier, higher peak must not be read again"


@pytest.mark.thorough
@metered
def test_meters_leave_gradients_out() -> None:
    plain, shared = peaks("kept 128 beside 64", "shared storage")
    assert plain.allocator == pytest.approx(64 * MB, rel=0.001)
    assert plain.resident == pytest.approx(64 * MB, rel=0.1)
    assert shared.allocator == pytest.approx(32 * MB, rel=0.001), "those that share a storage once each"
    assert shared.resident == pytest.approx(32 * MB, rel=0.1)


@pytest.mark.thorough
@metered
def test_the_allocator_meter_sees_a_peak_that_comes_before_the_gradients() -> None:
    (peak,) = peaks("early peak")
    assert peak.resident < 16 * MB, "resident is a lower bound here"
    assert peak.extra == pytest.approx(64 * MB, rel=0.001)


@metered
def test_a_limit_turns_growth_into_an_error() -> None:
    with pytest.raises(RuntimeError) as caught, memory.limited(100 * MB):
        torch.ones(100 * MB)
    assert is_out_of_memory(caught.value)
    assert torch.ones(100 * MB).numel() == 100 * MB, "the limit is lifted again"
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(ValueError("memory"))


@metered
def test_a_process_of_its_own_meters_a_rival() -> None:
    case = {"operation": "semantic_attention", "shape": "voc", "batch": 1, "mode": "train"}
    measured = memory.measure("handwritten", case, threads=1, limit=None)
    joint = 81 * 20 * 1024 * 4  # the tanh that the backward needs: [B, C, L, K]
    assert measured.status == "ok" and measured.peak is not None and measured.peak.allocator is not None
    assert joint <= measured.peak.allocator < 6 * joint


@metered
def test_a_process_that_may_not_grow_says_out_of_memory() -> None:
    case = {"operation": "semantic_attention", "shape": "coco", "batch": 4, "mode": "infer"}
    measured = memory.measure("handwritten", case, threads=1, limit=20 * MB)
    assert (measured.status, measured.peak) == ("out of memory", None) and "allocate" in measured.reason


def test_a_process_that_breaks_says_how() -> None:
    measured = memory.measure(
        "nobody", {"operation": "head", "shape": "voc", "batch": 1, "mode": "infer"}, threads=1, limit=None
    )
    assert measured.status == "failed" and "KeyError: 'nobody'" in measured.reason
