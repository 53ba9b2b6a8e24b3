"""``python -m benchmarks.run``: checks the rivals against the reference, then measures memory and interleaved times.

Prints a table per case and appends CSV rows.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import rivals
from benchmarks.harness import cases, ceilings, gpu, report, scaling, timing, verify
from benchmarks.harness.base import Base
from benchmarks.harness.cases import Case
from benchmarks.harness.measure import ROUNDS_WEIGHT, Bench, Item, Settings, check, labels, measure_together
from benchmarks.harness.report import PRODUCTS
from benchmarks.rivals import network
from ssgrl_fast._utils.ahead import usable_cores
from ssgrl_fast._utils.memory import keep_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that the command line names.

    Returns:
        With --tune the status of that program. Else 0; 1 if the parity check failed (then nothing is timed and no row
        is written) or a rival raised.

    Raises:
        ValueError: an invalid name or number; the device or the base commit does not exist; the results file has other
            columns.
    """
    arguments = _parser().parse_args(argv)
    if arguments.tune is not None:
        return int(importlib.import_module("benchmarks.tune").main(arguments.tune))
    if arguments.device == "cuda":
        gpu.require()
    items, settings = plan(arguments), _settings(arguments)
    networks = network.plan(arguments) if network.NETWORK in (arguments.operation or ()) else []
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    kept = keep_memory().kept if arguments.keep_memory else False
    run = report.Run.now(arguments.device, settings.threads, kept)
    path = arguments.output or report.path_of(run.device)
    console.print(report.header(run))
    load = timing.load_average()
    if load is not None and load > 0.5 * usable_cores():
        console.print(f"load average {load:.2f}: other programs are running, so the times below are noisy")
    with ExitStack() as stack:
        stack.enter_context(timing.fixed_threads(settings.threads))
        progress = stack.enter_context(_progress(console))
        bench = Bench(settings, timing.sampler(arguments.device), progress, progress.add_task("", total=None))
        if arguments.base is not None:
            bench.here = stack.enter_context(Base(None, settings.threads, bench.say))
            bench.base = stack.enter_context(Base(arguments.base, settings.threads, bench.say))
        progress.update(bench.bar, total=float(_work(items, settings) + len(networks) * (ROUNDS_WEIGHT + 1)))
        try:
            checked, networks_checked = check(items, bench), [_checked(case, bench) for case in networks]
            checked += sum(one.green for checks in networks_checked for one in checks)
        except verify.ParityError as error:
            console.print(str(error), markup=False)
            return 1
        console.print(f"gate: {checked} quantities within their budgets of the float64 reference")
        found = _measured(together(items, arguments), bench, console, run, path)
        for case, checks in zip(networks, networks_checked, strict=True):
            rows = network.measure(case, network.names(case, arguments.compile), bench, checks)
            report.append(path, run, rows)
            console.print(network.table(case, rows))
            for line in report.notes(rows):
                console.print(line, markup=False)
            found += rows
    for line in scaling.exponents(found) if arguments.scaling else ():
        console.print(line, markup=False)
    console.print(f"rows appended to {path}", markup=False, soft_wrap=True)
    return 1 if any(row.status == "failed" for row in found) else 0


def _measured(
    groups: Sequence[Sequence[Item]], bench: Bench, console: Console, run: report.Run, path: Path
) -> list[report.Row]:
    """The rows of all cases; each case is appended to the file and printed as soon as it is measured."""
    found: list[report.Row] = []
    for group in groups:
        case = group[0].case
        if group[0].timed and case.precision not in bench.ceilings:
            bench.say(f"ceilings: {case.precision}")
            bench.ceilings[case.precision] = ceilings.measure(case, bench.sample)
            console.print(f"ceilings in {case.precision}: {bench.ceilings[case.precision]}")
        for item, rows in zip(group, measure_together(group, bench), strict=True):
            report.append(path, run, rows)
            console.print(report.table(item.case, rows, labels(bench)))
            for line in (*report.notes(rows), *report.verdicts(item.case, rows)):
                console.print(line, markup=False)
            found += rows
    return found


def together(items: Sequence[Item], arguments: argparse.Namespace) -> list[list[Item]]:
    """Groups of cases that are timed together: with --scaling on a CPU all sizes of a mode, otherwise single cases.

    On a GPU single cases suffice, because it is not shared with other programs, and all sizes would not fit at once.
    """
    compiled = any(rivals.RIVALS[name].compiled for item in items for name in item.rivals if name != PRODUCTS)
    if not arguments.scaling or arguments.device != "cpu" or arguments.base is not None or compiled:
        return [[item] for item in items]
    groups: dict[tuple[str, str, int, str], list[Item]] = {}
    for item in items:
        case = item.case
        groups.setdefault((case.operation, case.mode, case.batch, case.precision), []).append(item)
    return list(groups.values())


def _checked(case: network.Network, bench: Bench) -> list[verify.Check]:
    bench.say(f"gate: {case}")
    checks = network.check(case)
    bench.progress.advance(bench.bar)
    return checks


def plan(arguments: argparse.Namespace) -> list[Item]:
    """The cases and rivals that the command line names.

    --quick without operation, shape, batch or rival measures the COCO head, and the memory with 500 classes. --scaling
    without them measures the head over the number of classes.
    """
    quick, named = arguments.quick, arguments.shape or arguments.batch or arguments.operation or arguments.rival
    on_gpu = arguments.device == "cuda"
    shapes: Sequence[str] = ("coco",) if quick else ("voc", "coco", "vg500")
    batches: Sequence[int] = (4,) if quick else (1, 4, 16, 64) if on_gpu else (1, 4)
    default: Sequence[str] | None = None
    if arguments.scaling:
        shapes, batches = scaling.sizes(arguments.device)
        default = scaling.rivals(arguments.device)
    chosen = cases.select(
        [name for name in arguments.operation or ("head",) if name != network.NETWORK],
        arguments.shape or shapes,
        arguments.batch or batches,
        arguments.mode or cases.MODES,
        arguments.device,
        arguments.dtype or ("float32",),
    )
    items = [Item(case, _rivals(case, arguments.rival or default, arguments.compile)) for case in chosen]
    if quick and not named and not arguments.scaling and arguments.memory:
        ours = "cpu" if not on_gpu else rivals.fastest(items[0].case)
        precisions = arguments.dtype or ("float32",)
        memory_only = cases.select(
            ("head",), ("vg500",), (1,), arguments.mode or cases.MODES, arguments.device, precisions
        )
        items += [Item(case, (ours,), timed=False) for case in memory_only]
    return items


def _rivals(case: Case, named: Sequence[str] | None, compiled: bool) -> tuple[str, ...]:
    """The rivals of the command line, or all that apply to the case, those under torch.compile only if requested."""
    if named:
        return tuple(named)
    listed = [rival for rival in rivals.RIVALS.values() if rival.applies(case) and (compiled or not rival.optional)]
    return (*(rival.name for rival in listed), PRODUCTS)


def _work(items: Sequence[Item], settings: Settings) -> int:
    probes = sum(len([name for name in item.rivals if name != PRODUCTS]) for item in items) if settings.memory else 0
    return len(items) + probes + sum(ROUNDS_WEIGHT for item in items if item.timed)


def _settings(arguments: argparse.Namespace) -> Settings:
    seconds = arguments.seconds if arguments.seconds is not None else 10.0 if arguments.quick else 60.0
    limit = None if arguments.memory_limit is None else int(arguments.memory_limit * 1e9)
    rounds = arguments.rounds if arguments.rounds is not None else 200 if arguments.device == "cuda" else 20
    return Settings(arguments.threads, rounds, seconds, arguments.memory, limit)


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
    add = parser.add_argument
    add(
        "--tune",
        nargs=argparse.REMAINDER,
        help="search tiles of the Triton kernels on this GPU instead; what follows are options of benchmarks.tune",
    )
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where to run")
    add("--quick", action="store_true", help="the COCO head at B = 4 and two memory figures, in a few minutes")
    add("--operation", action="append", choices=(*cases.OPERATIONS, network.NETWORK), help="repeatable; default: head")
    add("--shape", action="append", choices=tuple(cases.SHAPES), help="repeatable; default: voc, coco, vg500")
    add("--batch", action="append", type=int, help="images, repeatable; default: 1, 4; on a GPU also 16, 64")
    add("--net", default="resnet101", help="the whole network's backbone, a name of build_backbone")
    add("--image", type=int, default=576, help="side of the whole network's images")
    add("--scaling", action="store_true", help="time and memory against the classes, with measured exponents")
    add("--base", metavar="REF", help="also measure this commit's backends, round by round beside this tree's")
    add("--dtype", action="append", choices=tuple(cases.PRECISIONS), help="repeatable; default: float32")
    add("--mode", action="append", choices=cases.MODES, help="repeatable; default: both")
    add("--rival", action="append", choices=(*rivals.RIVALS, PRODUCTS), help="repeatable; default: all but compiled")
    add(
        "--compile",
        action="store_true",
        help="also the published form and the identities by hand under torch.compile (each case is compiled first)",
    )
    add("--threads", type=int, default=usable_cores(), help="intra-op threads; default: all cores")
    add("--rounds", type=int, help="most rounds a case; default: 20, on a GPU 200")
    add("--seconds", type=float, help="no new round after this long, once 3 are done; default: 60, with --quick 10")
    add(
        "--keep-memory",
        action="store_true",
        help="let glibc keep freed memory, for all rivals alike, as the command line does (ssgrl_fast.keep_memory)",
    )
    add("--no-memory", dest="memory", action="store_false", help="times only")
    add(
        "--memory-limit",
        type=float,
        metavar="GB",
        help="a rival that wants more is out of memory; default: what is free",
    )
    add("--output", type=Path, help="CSV file to append to; default: benchmarks/results/<device name>.csv")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"benchmarks.run: {error}")
