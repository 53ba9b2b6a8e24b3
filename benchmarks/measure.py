"""One case measured: the gate's verdicts, the memory of each rival, then the interleaved times of all that can run.

A rival that cannot run becomes a row that says why ("unavailable", "out of memory", "failed"), and the run goes on.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from rich.progress import Progress, TaskID
from torch import Tensor

from benchmarks import cuda, memory, products, registry, report, rivals, timing, verify
from benchmarks.base import HERE, Base, BaseStep
from benchmarks.ceilings import Ceilings
from benchmarks.registry import Case
from benchmarks.report import PRODUCTS

Step = Callable[[], object]
Refusals = dict[str, tuple[str, str]]
ROUNDS_WEIGHT = 10
"""Steps of the progress bar that the timing of one case stands for; a memory probe or a gate is one."""


@dataclass(frozen=True)
class Item:
    """One case of a run, with the rivals it is measured for; ``timed`` False meters memory only."""

    case: Case
    rivals: tuple[str, ...]
    timed: bool = True


@dataclass(frozen=True)
class Settings:
    """How a run measures; ``limit`` is the bytes that a rival may take beyond its inputs, None what is free."""

    threads: int
    rounds: int
    seconds: float
    memory: bool
    limit: int | None


@dataclass
class Bench:
    """What the cases of a run share."""

    settings: Settings
    sample: Callable[[Step], float]
    progress: Progress
    bar: TaskID
    base: Base | None = None  # another commit, and this tree in a process just like its
    here: Base | None = None
    ceilings: dict[str, Ceilings] = field(default_factory=dict)
    broken: dict[tuple[Case, str], tuple[str, str]] = field(default_factory=dict)

    def say(self, text: str) -> None:
        self.progress.update(self.bar, description=text)


def check(items: Sequence[Item], bench: Bench) -> int:
    """Gate every rival at every operation, shape, batch and precision once; return the number of quantities checked.

    A rival that raises instead of computing is noted in ``bench.broken`` and not timed.

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
        cuda.release()
    return quantities


def measure(item: Item, bench: Bench) -> list[report.Row]:
    """Memory of each rival, in a process of its own on a CPU, then the times of all that can run, interleaved."""
    case, load, settings = item.case, timing.load_average(), bench.settings
    letters = {name: rivals.RIVALS[name].letter if name != PRODUCTS else "e" for name in item.rivals}
    refused = _refusals(item, bench)
    metered: dict[str, memory.Measured] = {}
    for name in letters:
        if name != PRODUCTS and settings.memory:
            if case.device == "cpu" and name not in refused:
                bench.say(f"memory: {name}, {case}")
                metered[name] = memory.measure(name, registry.describe(case), settings.threads, _limit(settings))
                if metered[name].status == "out of memory":
                    refused[name] = (metered[name].status, metered[name].reason)
            bench.progress.advance(bench.bar)
    times: dict[str, timing.Timing] = {}
    if item.timed or case.device != "cpu":
        bench.say(f"time: {case}")
        able = [name for name in item.rivals if name not in refused]
        with _bounded(case.device, settings):
            steps, found, failed = _prepare(case, able, bench)
            metered, refused = metered | found, refused | failed
            if item.timed:
                theirs, missing = _base_steps(case, list(steps), bench)
                refused |= missing
                letters |= dict.fromkeys((*theirs, *missing), "d")
                with registry.multiplying(case.tf32):
                    times, failed = interleaved(steps | theirs, bench)
                refused |= failed
    return report.rows(case, letters, times, metered, refused, load, bench.ceilings.get(case.precision), _tag(bench))


def _refusals(item: Item, bench: Bench) -> Refusals:
    """Who cannot run, before anything is tried."""
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


def _prepare(
    case: Case, names: Sequence[str], bench: Bench
) -> tuple[dict[str, Step], dict[str, memory.Measured], Refusals]:
    """The warm steps of the rivals, their memory where the device's allocator tells it, and who fell out on the way."""
    steps: dict[str, Step] = {}
    metered: dict[str, memory.Measured] = {}
    refused: Refusals = {}
    try:
        tensors = registry.tensors(case)
    except Exception as error:
        return steps, metered, dict.fromkeys(names, why(error, "the case's inputs: "))
    forget_compiled()
    with registry.multiplying(case.tf32):
        for name in names:
            if name == PRODUCTS and not products.products(case):
                refused[name] = ("unavailable", f"performance.md counts no products of {case.operation} by itself")
                continue
            try:
                steps[name] = warm(name, case, tensors)
            except Exception as error:
                refused[name] = why(error)
            if case.device == "cuda":
                if name in steps and name != PRODUCTS and bench.settings.memory:
                    metered[name] = cuda.metered(steps[name])  # type: ignore[arg-type]
                cuda.release()
            gc.collect()
    return steps, metered, refused


def interleaved(steps: Mapping[str, Step], bench: Bench) -> tuple[dict[str, timing.Timing], Refusals]:
    """Times of all steps in one run; one that fails in the middle is left out and the others begin again."""
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
    if memory.is_out_of_memory(error):
        return "out of memory", f"{where}{cuda.first_line(error)}"
    return "failed", f"{where}{type(error).__name__}: {cuda.first_line(error)}"


def forget_compiled() -> None:
    """Empty torch.compile's cache: it holds few shapes of one function, and every case brings another."""
    torch.compiler.reset()


def labels(bench: Bench) -> dict[str, str]:
    """What the table calls the rivals."""
    own = {name: rival.label for name, rival in rivals.RIVALS.items()} | {PRODUCTS: "products alone"}
    tag = _tag(bench)
    tags = (f"@{HERE}", tag) if tag else ()
    return own | {f"{name}{tag}": f"{label}, at {tag[1:]}" for name, label in own.items() for tag in tags}


def warm(name: str, case: Case, tensors: dict[str, Tensor]) -> Step:
    """The timed function of a rival, run once, and on a GPU until its libraries have chosen their kernels."""
    step = products.runner(case) if name == PRODUCTS else rivals.step(rivals.RIVALS[name].build(case, tensors), case)
    for _ in range(cuda.WARM_UP if case.device == "cuda" else 1):
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
        cuda.limit(settings.limit)
        yield
        return
    with memory.limited(_limit(settings)):
        yield


def _limit(settings: Settings) -> int | None:
    """Bytes that one rival may take: what was asked for, or what is free now."""
    return settings.limit if settings.limit is not None else memory.available()
