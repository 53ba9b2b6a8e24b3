"""The benchmark cases under pytest-benchmark: ``python -m pytest benchmarks/test_speed.py --benchmark-enable``.

``--benchmark-save=NAME`` saves a run; ``--benchmark-compare=NUMBER --benchmark-compare-fail=median:10%`` compares a
later run on the same machine with it. On a busy machine compare ratios within a run instead (benchmarks.run).

On a GPU the samples are device times between events after an L2 flush. They are passed to pytest-benchmark through a
substitute clock, because its own timer would measure only the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from benchmarks import rivals
from benchmarks.harness import cases, gpu, measure, timing, verify
from benchmarks.harness.cases import Case
from benchmarks.harness.report import PRODUCTS
from benchmarks.rivals import products

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISIONS = ("float32", "bfloat16") if DEVICE == "cuda" else ("float32",)
OPERATIONS, SHAPES, BATCHES = cases.OPERATIONS, ("voc", "coco", "vg500"), (1, 16) if DEVICE == "cuda" else (1,)
ROUNDS = 100 if DEVICE == "cuda" else 5


class FedClock:
    """A timer that advances only by given samples."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self._left: Iterator[float] = iter(seconds)
        self._now = 0.0

    def tick(self) -> None:
        """Advance by the next sample."""
        self._now += next(self._left)

    def __call__(self) -> float:
        return self._now


def feed(benchmark: Any, seconds: Sequence[float]) -> None:
    """Record samples in pytest-benchmark that were measured elsewhere."""
    clock = FedClock(seconds)
    benchmark._timer = clock  # not public in pytest-benchmark 5, and the only way in
    benchmark.pedantic(clock.tick, rounds=len(seconds), iterations=1, warmup_rounds=0)


def bench(benchmark: Any, step: Callable[[], object], device: str, rounds: int = ROUNDS) -> None:
    """Time a warm step: with GPU events on a GPU, with pytest-benchmark's own timer on a CPU."""
    if device == "cuda" and benchmark.enabled:
        sample = timing.sampler(device)
        feed(benchmark, [sample(step) for _ in range(rounds)])
        return
    benchmark.pedantic(step, rounds=rounds, iterations=1, warmup_rounds=0)


@cache
def gated(case: Case, name: str) -> None:
    """Check the parity of a rival at the small shape of a case, once; raises ParityError if it fails."""
    verify.gate(case, [rivals.RIVALS[name]])


def parameters() -> Iterator[Any]:
    """Every case of the standard shapes with every rival that does not use torch.compile."""
    for case in cases.select(OPERATIONS, SHAPES, BATCHES, cases.MODES, DEVICE, PRECISIONS):
        for rival in rivals.RIVALS.values():
            if not rival.compiled and rival.applies(case) and rival.refuses(case) is None:
                yield pytest.param(case, rival.name, id=_label(case, rival.name))
        if products.products(case):
            yield pytest.param(case, PRODUCTS, id=_label(case, PRODUCTS))


def _label(case: Case, name: str) -> str:
    return f"{case.operation}-{case.shape.name}-b{case.batch}-{case.mode}-{case.precision}-{name}"


@pytest.mark.parametrize(("case", "name"), parameters())
def test_speed(benchmark: Any, case: Case, name: str) -> None:
    """One rival at one case, checked for parity first."""
    benchmark.group = str(case)
    benchmark.extra_info.update(cases.describe(case), rival=name, products_flop=products.flop(case))
    if name != PRODUCTS:
        gated(case.small(), name)
    with cases.multiplying(case.tf32):
        try:
            step = measure.warm(name, case, cases.tensors(case))
            bench(benchmark, step, case.device)
        except Exception as error:
            status, reason = measure.why(error)
            if status != "out of memory":
                raise
            pytest.skip(f"{status}: {reason}")
        finally:
            if case.device == "cuda":
                gpu.release()
