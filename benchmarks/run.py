"""``python -m benchmarks.run``: the gate, then memory and interleaved times of the rivals, a table and CSV rows."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from benchmarks import memory, products, registry, report, rivals, timing, verify
from benchmarks.registry import Case
from benchmarks.report import PRODUCTS


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that the command line names.

    Returns:
        0; 1 when the gate is red, in which case nothing was timed and no row was written.

    Raises:
        ValueError: a name or number that does not exist or does not fit; the results file has other columns.
    """
    arguments = _parser().parse_args(argv)
    items, settings = plan(arguments), _settings(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    run = report.Run.now(arguments.device, settings.threads)
    path = arguments.output or report.path_of(run.device)
    console.print(report.header(run))
    load = timing.load_average()
    if load is not None and load > 0.5 * timing.available_cores():
        console.print(f"load average {load:.2f}: other programs are running, so the times below are noisy")
    with timing.fixed_threads(settings.threads), _progress(console) as progress:
        bar = progress.add_task("gate", total=float(_work(items, settings)))
        try:
            checked = check(items, progress, bar)
        except verify.ParityError as error:
            console.print(str(error), markup=False)
            return 1
        console.print(f"gate: {checked} quantities within their budgets of the float64 reference")
        for item in items:
            rows = measure(item, settings, progress, bar)
            report.append(path, run, rows)
            console.print(report.table(item.case, rows, _labels()))
            for line in (*report.notes(rows), *report.verdicts(item.case, rows)):
                console.print(line, markup=False)
    console.print(f"rows appended to {path}", markup=False, soft_wrap=True)
    return 0


def plan(arguments: argparse.Namespace) -> list[Item]:
    """The cases and rivals that the command line names.

    --quick without a choice of operation, shape, batch or rival is the COCO head and the memory of 500 classes.
    """
    names = tuple(
        arguments.rival or (name for name, rival in rivals.RIVALS.items() if not rival.optional or arguments.compile)
    )
    if not arguments.rival:
        names += (PRODUCTS,)
    quick = arguments.quick
    shapes = arguments.shape or (("coco",) if quick else ("voc", "coco", "vg500"))
    batches = arguments.batch or ((4,) if quick else (1, 4))
    modes = arguments.mode or registry.MODES
    operations = arguments.operation or ("head",)
    items = [Item(case, names) for case in registry.select(operations, shapes, batches, modes, arguments.device)]
    if (
        quick
        and not (arguments.shape or arguments.batch or arguments.operation or arguments.rival)
        and arguments.memory
    ):
        items += [Item(case, ("cpu",), timed=False) for case in registry.select(("head",), ("vg500",), (1,), modes)]
    return items


def check(items: Sequence[Item], progress: Progress, bar: TaskID) -> int:
    """Gate every rival at every operation, shape and batch once; return the number of quantities checked.

    Raises:
        verify.ParityError: at least one is over its budget.
    """
    done: set[tuple[Case, str]] = set()
    quantities = 0
    for item in items:
        case = replace(item.case.small(), mode="train")
        progress.update(bar, description=f"gate: {case.operation}, {case.shape.name}")
        names = [name for name in item.rivals if name != PRODUCTS and (case, name) not in done]
        able = [rivals.RIVALS[name] for name in names if rivals.RIVALS[name].refuses(case) is None]
        quantities += len(verify.gate(case, able)) if able else 0
        done |= {(case, name) for name in names}
        progress.advance(bar)
    return quantities


def measure(item: Item, settings: Settings, progress: Progress, bar: TaskID) -> list[report.Row]:
    """Memory of each rival in a process of its own, then the times of all that can run, interleaved in this one."""
    case, load = item.case, timing.load_average()
    letters = {name: rivals.RIVALS[name].letter if name != PRODUCTS else "e" for name in item.rivals}
    reasons = {name: rivals.RIVALS[name].refuses(case) for name in item.rivals if name != PRODUCTS}
    refused = {name: ("unavailable", reason) for name, reason in reasons.items() if reason is not None}
    metered: dict[str, memory.Measured] = {}
    for name in reasons:
        if settings.memory and name not in refused:
            progress.update(bar, description=f"memory: {name}, {case}")
            metered[name] = memory.measure(name, _described(case), settings.threads, _limit(settings))
            if metered[name].status == "out of memory":
                refused[name] = (metered[name].status, metered[name].reason)
        progress.advance(bar, 1 if settings.memory else 0)
    times: dict[str, timing.Timing] = {}
    if item.timed:
        progress.update(bar, description=f"time: {case}")
        able = [name for name in item.rivals if name not in refused]
        times, failed = _time(case, able, settings, progress, bar)
        refused |= failed
    return report.rows(case, letters, times, metered, refused, load)


def _time(
    case: Case, names: Sequence[str], settings: Settings, progress: Progress, bar: TaskID
) -> tuple[dict[str, timing.Timing], dict[str, tuple[str, str]]]:
    """Interleaved times, and the rivals that ran out of memory while they were warmed up."""
    tensors = registry.tensors(case)
    steps: dict[str, Callable[[], object]] = {}
    refused: dict[str, tuple[str, str]] = {}
    with memory.limited(_limit(settings)):
        for name in names:
            if name == PRODUCTS and not products.products(case):
                refused[name] = ("unavailable", f"performance.md counts no products of {case.operation} by itself")
                continue
            try:
                steps[name] = _warm(name, case, tensors)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                refused[name] = ("out of memory", str(error).splitlines()[0])
            gc.collect()
        start = progress.tasks[bar].completed

        def advance(_: int, share: float) -> None:
            progress.update(bar, completed=start + _ROUNDS_WEIGHT * share)

        times = timing.interleave(steps, rounds=settings.rounds, seconds=settings.seconds, on_round=advance)
    progress.update(bar, completed=start + _ROUNDS_WEIGHT)
    return times, refused


def _warm(name: str, case: Case, tensors: dict[str, Tensor]) -> Callable[[], object]:
    """The timed function of a rival, run once."""
    if name == PRODUCTS:
        step: Callable[[], object] = products.ProductRunner(case)
    else:
        step = rivals.step(rivals.RIVALS[name].build(case, tensors), case)
    step()
    return step


def _limit(settings: Settings) -> int | None:
    """Bytes that one rival may take: what was asked for, or what is free now."""
    return settings.limit if settings.limit is not None else memory.available()


_ROUNDS_WEIGHT = 10
"""Steps of the progress bar that the timing of one case stands for; a memory probe or a gate is one."""


def _work(items: Sequence[Item], settings: Settings) -> int:
    probes = sum(len([name for name in item.rivals if name != PRODUCTS]) for item in items) if settings.memory else 0
    return len(items) + probes + sum(_ROUNDS_WEIGHT for item in items if item.timed)


def _described(case: Case) -> dict[str, object]:
    return {"operation": case.operation, "shape": case.shape.name, "batch": case.batch, "mode": case.mode}


def _labels() -> dict[str, str]:
    return {name: rival.label for name, rival in rivals.RIVALS.items()} | {PRODUCTS: "products alone"}


def _settings(arguments: argparse.Namespace) -> Settings:
    seconds = arguments.seconds if arguments.seconds is not None else 10.0 if arguments.quick else 60.0
    limit = None if arguments.memory_limit is None else int(arguments.memory_limit * 1e9)
    return Settings(arguments.threads, arguments.rounds, seconds, arguments.memory, limit)


def _progress(console: Console) -> Progress:
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    return Progress(*columns, console=console, transient=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu",), help="where to run")
    parser.add_argument(
        "--quick", action="store_true", help="the COCO head at B = 4 and two memory figures, in under 3 minutes"
    )
    parser.add_argument("--operation", action="append", choices=registry.OPERATIONS, help="repeatable; default: head")
    parser.add_argument(
        "--shape", action="append", choices=tuple(registry.SHAPES), help="repeatable; default: voc, coco, vg500"
    )
    parser.add_argument("--batch", action="append", type=int, help="images, repeatable; default: 1 and 4")
    parser.add_argument("--mode", action="append", choices=registry.MODES, help="repeatable; default: both")
    parser.add_argument(
        "--rival", action="append", choices=(*rivals.RIVALS, PRODUCTS), help="repeatable; default: all but compiled"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also time the identities by hand under torch.compile (each case is compiled first)",
    )
    parser.add_argument(
        "--threads", type=int, default=timing.available_cores(), help="intra-op threads; default: all cores"
    )
    parser.add_argument("--rounds", type=int, default=20, help="most rounds a case")
    parser.add_argument(
        "--seconds", type=float, help="no new round after this long, once 3 are done; default: 60, with --quick 10"
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="times only")
    parser.add_argument(
        "--memory-limit",
        type=float,
        metavar="GB",
        help="a rival that wants more is out of memory; default: what is free",
    )
    parser.add_argument(
        "--output", type=Path, help="CSV file to append to; default: benchmarks/results/<device name>.csv"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
