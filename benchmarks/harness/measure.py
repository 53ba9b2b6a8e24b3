"""Measures a case: parity check, memory of each rival, then the interleaved times of all rivals that can run.

A rival that cannot run gets a row with the reason ("unavailable", "out of memory", "failed"), and the run continues.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.harness import cases, gpu, memory, report, timing, verify
from benchmarks.harness.base import HERE, Base, BaseStep
from benchmarks.harness.cases import Case
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.peak import Measured, is_out_of_memory
from benchmarks.harness.report import PRODUCTS
from benchmarks.rivals import products

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Step = Callable[[], object]
Refusals = dict[str, tuple[str, str]]
ROUNDS_WEIGHT = 10
"""Steps of the progress bar that the timing of one case stands for; a memory probe or a gate is one."""


@dataclass(frozen=True)
class Item:
    """A case of a run and its rivals; with ``timed`` False only memory is measured."""

    case: Case
    rivals: tuple[str, ...]
    timed: bool = True


@dataclass(frozen=True)
class Settings:
    """Settings of a run; ``limit``: bytes a rival may use beyond its inputs, None: the free memory."""

    threads: int
    rounds: int
    seconds: float
    memory: bool
    limit: int | None


@dataclass
class Bench:
    """The state that the cases of a run share."""

    settings: Settings
    sample: Callable[[Step], float]
    progress: Progress
    bar: TaskID
    base: Base | None = None  # another commit, and this tree in a process of the same kind
    here: Base | None = None
    ceilings: dict[str, Ceilings] = field(default_factory=dict)
    broken: dict[tuple[Case, str], tuple[str, str]] = field(default_factory=dict)

    def say(self, text: str) -> None:
        self.progress.update(self.bar, description=text)


def check(items: Sequence[Item], bench: Bench) -> int:
    """Gate every rival at every operation, shape, batch and precision once; return the number of quantities checked.

    A rival that raises is recorded in ``bench.broken`` and not timed.

    Raises:
        verify.ParityError: at least one is over its budget, here or at the base commit.
    """
    done: set[tuple[Case, str]] = set()
    quantities = 0
    for item in items:
        case = _checked(item.case)
        bench.say(f"gate: {case.operation}, {case.shape.name}")
        names = [name for name in item.rivals if name != PRODUCTS and (case, name) not in done]
        able = [rivals.RIVALS[name] for name in names if rivals.RIVALS[name].refuses(case) is None]
        broken: dict[str, Exception] = {}
        forget_compiled()
        quantities += len(verify.gate(case, able, broken=broken)) if able else 0
        bench.broken |= {(case, name): why(error, "in the gate: ") for name, error in broken.items()}
        if bench.base is not None:
            quantities += bench.base.gate(case, [name for name in names if rivals.RIVALS[name].ours])
        done |= {(case, name) for name in names}
        bench.progress.advance(bench.bar)
    if items and items[0].case.device == "cuda":
        gpu.release()
    return quantities


@dataclass
class _Tried:
    """The intermediate results of a case."""

    item: Item
    load: float | None
    letters: dict[str, str]
    refused: Refusals
    metered: dict[str, Measured]
    steps: dict[str, Step] = field(default_factory=dict)


def measure(item: Item, bench: Bench) -> list[report.Row]:
    """The rows of one case."""
    return measure_together([item], bench)[0]


def measure_together(items: Sequence[Item], bench: Bench) -> list[list[report.Row]]:
    """Memory of each rival, then the times of all that can run in all these cases, interleaved in one run.

    Cases are measured together where their times are to be compared with each other, as sizes are: what else the
    machine does then meets all of them alike. They share device and precision, have no compiled rivals, and --base is
    for one case at a time.
    """
    tried = [_metered(item, bench) for item in items]
    first = items[0].case
    with _bounded(first.device, bench.settings), cases.multiplying(first.tf32):
        for one in tried:
            if one.item.timed or first.device != "cpu":
                _make_ready(one, bench)
        bench.say(f"time: {', '.join(str(item.case) for item in items)}")
        steps = {f"{place} {name}": step for place, one in enumerate(tried) for name, step in one.steps.items()}
        times, failed = interleaved(steps, bench) if steps else ({}, {})
        bench.progress.advance(bench.bar, ROUNDS_WEIGHT * max(0, sum(one.item.timed for one in tried) - 1))
    found = []
    for place, one in enumerate(tried):
        own = {name: times[key] for name in one.steps if (key := f"{place} {name}") in times}
        refused = one.refused | {name: failed[key] for name in one.steps if (key := f"{place} {name}") in failed}
        case = one.item.case
        rates = bench.ceilings.get(case.precision)
        found.append(report.rows(case, one.letters, own, one.metered, refused, one.load, rates, _tag(bench)))
    return found


def _metered(item: Item, bench: Bench) -> _Tried:
    """The rivals that cannot run; on a CPU also the memory of the others, each measured in its own process."""
    case, settings = item.case, bench.settings
    letters = {name: rivals.RIVALS[name].letter if name != PRODUCTS else "e" for name in item.rivals}
    one = _Tried(item, timing.load_average(), letters, _refusals(item, bench), {})
    for name in letters:
        if name != PRODUCTS and settings.memory:
            if case.device == "cpu" and name not in one.refused:
                bench.say(f"memory: {name}, {case}")
                peak = memory.measure(name, cases.describe(case), settings.threads, _limit(settings))
                one.metered[name] = peak
                if peak.status == "out of memory":
                    one.refused[name] = (peak.status, peak.reason)
            bench.progress.advance(bench.bar)
    return one


def _make_ready(one: _Tried, bench: Bench) -> None:
    """Build and warm the steps of one case; those of a case that is not timed are only metered."""
    case = one.item.case
    bench.say(f"warm-up: {case}")
    steps, found, failed = _prepare(case, [name for name in one.item.rivals if name not in one.refused], bench)
    one.metered |= found
    one.refused |= failed
    if one.item.timed:
        theirs, missing = _base_steps(case, list(steps), bench)
        one.refused |= missing
        one.letters |= dict.fromkeys((*theirs, *missing), "d")
        one.steps = steps | theirs


def _refusals(item: Item, bench: Bench) -> Refusals:
    """The rivals that cannot run, as far as known before running them."""
    refused: Refusals = {}
    for name in item.rivals:
        if name == PRODUCTS:
            continue
        reason, broken = rivals.RIVALS[name].refuses(item.case), bench.broken.get((_checked(item.case), name))
        if reason is not None:
            refused[name] = ("unavailable", reason)
        elif broken is not None:
            refused[name] = broken
    return refused


def _prepare(case: Case, names: Sequence[str], bench: Bench) -> tuple[dict[str, Step], dict[str, Measured], Refusals]:
    """The warm steps of the rivals, their memory where the device's allocator tells it, and who fell out on the way."""
    steps: dict[str, Step] = {}
    metered: dict[str, Measured] = {}
    refused: Refusals = {}
    try:
        tensors = cases.tensors(case)
    except Exception as error:
        return steps, metered, dict.fromkeys(names, why(error, "the case's inputs: "))
    forget_compiled()
    with cases.multiplying(case.tf32):
        for name in names:
            if name == PRODUCTS and not products.products(case):
                refused[name] = ("unavailable", f"no products alone are defined for {case.operation} by itself")
                continue
            try:
                steps[name] = warm(name, case, tensors)
            except Exception as error:
                refused[name] = why(error)
            if case.device == "cuda":
                if name in steps and name != PRODUCTS and bench.settings.memory:
                    metered[name] = gpu.metered(steps[name])  # type: ignore[arg-type]
                gpu.release()
            gc.collect()
    return steps, metered, refused


def interleaved(steps: Mapping[str, Step], bench: Bench) -> tuple[dict[str, timing.Timing], Refusals]:
    """Times of all steps in one run; if a step fails, the others are timed again without it."""
    left, refused = dict(steps), Refusals()
    start = bench.progress.tasks[bench.bar].completed

    def advance(_: int, share: float) -> None:
        bench.progress.update(bench.bar, completed=start + ROUNDS_WEIGHT * share)

    def sample(step: Step) -> float:
        return step.sample() if isinstance(step, BaseStep) else bench.sample(step)

    times: dict[str, timing.Timing] = {}
    while left and not times:
        settings = bench.settings
        try:
            times = timing.interleave(
                left, rounds=settings.rounds, seconds=settings.seconds, sample=sample, on_round=advance
            )
        except timing.StepError as error:
            assert isinstance(error.__cause__, Exception)
            refused[error.name] = why(error.__cause__)
            del left[error.name]
    bench.progress.update(bench.bar, completed=start + ROUNDS_WEIGHT)
    return times, refused


def why(error: Exception, where: str = "") -> tuple[str, str]:
    """The status and reason of a rival that raised."""
    if is_out_of_memory(error):
        return "out of memory", f"{where}{gpu.first_line(error)}"
    return "failed", f"{where}{type(error).__name__}: {gpu.first_line(error)}"


def forget_compiled() -> None:
    """Reset torch.compile: its cache holds few shapes per function, and every case has another shape."""
    torch.compiler.reset()


def labels(bench: Bench) -> dict[str, str]:
    """The labels of the rivals in tables."""
    own = {name: rival.label for name, rival in rivals.RIVALS.items()} | {PRODUCTS: "products alone"}
    tag = _tag(bench)
    tags = (f"@{HERE}", tag) if tag else ()
    return own | {f"{name}{tag}": f"{label}, at {tag[1:]}" for name, label in own.items() for tag in tags}


def warm(name: str, case: Case, tensors: dict[str, Tensor]) -> Step:
    """The timed function of a rival, run once, and on a GPU until its libraries have chosen their kernels."""
    step = products.runner(case) if name == PRODUCTS else rivals.step(rivals.RIVALS[name].build(case, tensors), case)
    for _ in range(gpu.WARM_UP if case.device == "cuda" else 1):
        step()
    return step


def _base_steps(case: Case, names: Sequence[str], bench: Bench) -> tuple[dict[str, Step], Refusals]:
    """This tree's backends and the base commit's, each in its process, and which of them could not be built there."""
    if bench.base is None or bench.here is None:
        return {}, {}
    ours = [name for name in names if name != PRODUCTS and rivals.RIVALS[name].ours]
    steps, refused = bench.here.prepare(case, ours)
    theirs, missing = bench.base.prepare(case, ours)
    return steps | theirs, refused | missing


def _tag(bench: Bench) -> str:
    return "" if bench.base is None else f"@{bench.base.commit}"


def _checked(case: Case) -> Case:
    return replace(case.small(), mode="train")


@contextmanager
def _bounded(device: str, settings: Settings) -> Iterator[None]:
    """No rival takes more than the settings allow: the process's own memory on a CPU, the allocator's on a GPU."""
    if device == "cuda":
        gpu.limit(settings.limit)
        yield
        return
    with memory.limited(_limit(settings)):
        yield


def _limit(settings: Settings) -> int | None:
    """Bytes that one rival may take: what was asked for, or what is free now."""
    return settings.limit if settings.limit is not None else memory.available()
