"""``python -m benchmarks.first_contact BACKEND``: one backend on a device that is new to it. It never refuses to time.

Prints a JSON line a fact, the most valuable first: parity of each operation (a red one stops nothing), then times
beside the products alone, kernel by kernel on a GPU. It ends early only where the GPU's context is lost, which no later
call in the process survives. The rows go to a results file; with ``--table`` that file is printed in Markdown, each
median beside a bound that is reckoned: the counted work over the ceilings that the same run measured, the largest.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import rivals
from benchmarks.harness import cases, ceilings, gpu, measure, report, timing, verify
from benchmarks.harness.cases import Case
from benchmarks.harness.report import PRODUCTS
from benchmarks.rivals import library

TIMED = ((64, "infer"), (16, "infer"), (1, "infer"), (64, "train"), (16, "train"))
_BOUNDS = {"copy": "copy", "product": "products", "tanh": "tanh"}


def main(argv: Sequence[str] | None = None) -> int:
    """Check and time a backend, or print the table.

    Returns:
        0; 3 if the GPU's context was lost.

    Raises:
        ValueError: there is no GPU.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_contact", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("backend", nargs="?", default="triton", help="whose head is checked and timed")
    add("--dtype", default="bfloat16", choices=tuple(cases.PRECISIONS))
    add("--device", default="cuda", choices=("cpu", "cuda"))
    add("--seconds", type=float, default=60.0, help="no new case starts after this time")
    add("--tiny", action="store_true", help="a few classes and channels, for a rehearsal")
    add("--output", type=Path, required=True, help="results file: rows are added to it")
    add("--table", action="store_true", help="print this results file in Markdown and do nothing else")
    arguments = parser.parse_args(argv)
    if arguments.table:
        print(table(arguments.output))
        return 0
    if arguments.device == "cuda":
        gpu.require()
    begin = time.perf_counter()
    try:
        right(arguments)
        fast(arguments, lambda: arguments.seconds - (time.perf_counter() - begin))
    except ContextLostError as error:
        say(lost=str(error))
        return 3
    return 0


class ContextLostError(RuntimeError):
    """The GPU refuses every further call of this process."""


def say(**facts: object) -> None:
    """A line at once: what was printed survives whatever comes later."""
    print(json.dumps(facts), flush=True)


def attempt(what: str, action: Callable[[], None]) -> None:
    """Run a stage; its error is a fact like any other, except that after a CUDA error the context is gone."""
    try:
        action()
    except Exception as error:
        say(what=what, error=f"{type(error).__name__}: {gpu.first_line(error)}"[:300])
        if "CUDA error" in str(error):
            raise ContextLostError(gpu.first_line(error)) from error


def _case(arguments: argparse.Namespace, operation: str, shape: str, batch: int, mode: str) -> Case:
    case = next(cases.select((operation,), (shape,), (batch,), (mode,), arguments.device, (arguments.dtype,)))
    return case.tiny() if arguments.tiny else case


def right(arguments: argparse.Namespace) -> None:
    """Parity of every operation on both sides of identity 4: the largest error as a share of what is allowed."""
    rival = rivals.RIVALS[arguments.backend]
    for operation in cases.OPERATIONS:
        for shape in ("coco", "coco-448"):
            case = _case(arguments, operation, shape, 2, "train")

            def check(case: Case = case) -> None:
                if (reason := rival.refuses(case)) is not None:
                    return say(check=str(case), refused=reason)
                try:
                    checks, red = verify.gate(case, [rival]), []
                except verify.ParityError as error:
                    checks, red = list(error.red), [str(one) for one in error.red]
                say(check=str(case), worst=round(max(one.error / one.allowed for one in checks), 3), red=red)

            attempt(str(case), check)


def fast(arguments: argparse.Namespace, left: Callable[[], float]) -> None:
    """The head beside the products alone; prepared and captured too, where it infers on a GPU."""
    sample, run = timing.sampler(arguments.device), report.Run.now(arguments.device, torch.get_num_threads())
    reach = None
    for batch, mode in TIMED:
        case = _case(arguments, "head", "coco", batch, mode)
        if left() < 5:
            say(time=str(case), stopped="out of time")
            continue

        def time_one(case: Case = case) -> None:
            nonlocal reach
            if (reason := rivals.RIVALS[arguments.backend].refuses(case)) is not None:
                return say(time=str(case), refused=reason)
            tensors = cases.tensors(case)
            with cases.multiplying(case.tf32):
                steps = {name: measure.warm(name, case, tensors) for name in (arguments.backend, PRODUCTS)}
                if case.device == "cuda":
                    steps[PRODUCTS] = gpu.graphed(steps[PRODUCTS])
                    if case.mode == "infer":
                        prepared = library.prepared_step(arguments.backend, case, tensors)
                        steps[f"{arguments.backend}-captured"] = gpu.graphed(prepared)
                times = timing.interleave(steps, rounds=30, seconds=min(3.0, left() / 2), sample=sample)
                say(time=str(case), ms={name: round(one.percentile(50) * 1e3, 4) for name, one in times.items()})
                if case.device == "cuda" and case.mode == "infer":
                    say(time=str(case), kernels_us=_kernels(steps[f"{arguments.backend}-captured"]))
                reach = reach or ceilings.measure(case, sample, large=not arguments.tiny)
            letters = dict.fromkeys(steps, "e")
            report.append(
                arguments.output, run, report.rows(case, letters, times, {}, {}, timing.load_average(), reach)
            )

        attempt(str(case), time_one)


def _kernels(step: Callable[[], object]) -> dict[str, tuple[float, int]]:
    """Microseconds and launches by kernel, the longest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    return {event.key[:60]: (round(event.self_device_time_total, 1), event.count) for event in events[:20]}


def table(path: Path) -> str:
    """The rows of a results file in Markdown, measured beside reckoned."""
    lines = ["| case | rival | measured, ms | reckoned bound, ms | set by | measured / products |", "|---" * 6 + "|"]
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if not row["p50_ms"]:
                lines.append(f"| {row['operation']} {row['shape']} | {row['rival']} | {row['status']} | | | |")
                continue
            shares = {name: float(row[f"share_{name}"]) for name in _BOUNDS if row[f"share_{name}"]}
            name = max(shares, key=lambda one: shares[one], default=None)
            ms = float(row["p50_ms"])
            bound = "not measured" if name is None else f"{ms * shares[name]:.4f}"
            over = f"{float(row['over_products']):.2f}" if row["over_products"] else "not measured"
            case = f"{row['operation']} {row['shape']} B={row['B']} {row['dtype']} {row['mode']}"
            lines.append(f"| {case} | {row['rival']} | {ms:.4f} | {bound} | {_BOUNDS.get(name or '', '')} | {over} |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"benchmarks.first_contact: {error}")
