"""``ssgrl-fast parity`` and ``python -m benchmarks.parity``: only the parity check, without timing.

Every backend of this machine, and with --rivals every other implementation too, is held to the float64 reference, on
random and on hostile inputs: forward, with and without autograd, and every gradient. One line per operation, shape,
precision, inputs and implementation: its worst forward error and its worst gradient, each beside its budget. The exit
status is 1 if an error exceeds its budget or an implementation raises. On a CPU, where only the reference computes
float16, and slowly, that is checked at the first shape unless --dtype names it.

With --device cuda, and without --shape or --inputs, the backend cuda is then timed beside the one that runs otherwise,
inference and training at C = 80 and B = 16, and the verdict on each operation and dtype goes to the file that
ssgrl_fast.backends.explain() and the choice of a backend read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.harness import cases, gpu, measure, timing, verify
from benchmarks.harness.cases import Case
from benchmarks.harness.verify import Check
from ssgrl_fast.backends import STEMS, first_able
from ssgrl_fast.backends.verdicts import Verdict, circumstances, place, record

SHAPES = ("voc", "coco-448", "vg500")  # on both sides of identity 4's threshold, few classes and many
INPUTS = ("random", "hostile")
_WIDTHS = (20, 9, 9, 8, 12)
_HEAD = ("operation", "shape", "dtype", "inputs", "backend")
_ERRORS = f"{'forward':>9}{'budget':>9}{'gradient':>10}{'budget':>9}  of"


def main(argv: Sequence[str] | None = None, prog: str = "python -m benchmarks.parity") -> int:
    """Check every backend that can run on the device of the command line.

    Raises:
        ValueError: the device does not exist, or does not support a precision.
    """
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n\n")[2])
    add = parser.add_argument
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where to run (cpu)")
    add("--operation", action="append", choices=cases.OPERATIONS, help="repeatable; default: all")
    add("--shape", action="append", choices=tuple(cases.SHAPES), help=f"repeatable ({', '.join(SHAPES)})")
    add("--dtype", action="append", choices=tuple(cases.PRECISIONS), help="repeatable; default: all")
    add("--inputs", action="append", choices=INPUTS, help="repeatable; default: both")
    add("--rivals", action="store_true", help="also check what the backends are compared with")
    add("--compile", action="store_true", help="with --rivals, also under torch.compile")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda":
        gpu.require()
    precisions = arguments.dtype or [name for name in cases.PRECISIONS if (arguments.device, name) != ("cpu", "tf32")]
    operations, shapes = arguments.operation or cases.OPERATIONS, arguments.shape or SHAPES
    failed, right = 0, dict[tuple[str, str], bool]()
    print("".join(f"{name:{width}}" for name, width in zip(_HEAD, _WIDTHS, strict=True)) + _ERRORS)
    for case in cases.select(operations, shapes, (2,), ("train",), arguments.device, precisions):
        measure.forget_compiled()
        if slow_float16(case) and case.shape.name != shapes[0] and not arguments.dtype:
            continue
        listed = [each for each in rivals.RIVALS.values() if _is_asked(each, case, arguments)]
        for inputs in arguments.inputs or INPUTS:
            for name, line, red in outcomes(case, listed, inputs):
                print(line, flush=True)
                failed += red
                if name == "cuda" and case.operation in STEMS:
                    key = (case.operation, str(case.dtype).removeprefix("torch."))
                    right[key] = right.get(key, True) and not red
    if right and not (arguments.shape or arguments.inputs):
        keep(right, precisions)
    print(f"{failed} failed" if failed else "every implementation that can run here is within its budget")
    return 1 if failed else 0


def slow_float16(case: Case) -> bool:
    """Whether PyTorch computes the case without a float16 product of its own."""
    return (case.device, case.precision) == ("cpu", "float16")


def _is_asked(rival: rivals.Rival, case: Case, arguments: argparse.Namespace) -> bool:
    if not rival.applies(case) or rival.refuses(case) is not None:
        return False
    return rival.ours or (arguments.rivals and (arguments.compile or not rival.compiled))


def keep(right: dict[tuple[str, str], bool], precisions: Sequence[str], device: str = "cuda") -> None:
    """Time the operations and dtypes that were right, and record what was found for this GPU."""
    here, found = circumstances(torch.device(device)), []
    for (operation, dtype), parity in right.items():
        same = [name for name in precisions if str(cases.PRECISIONS[name][0]) == f"torch.{dtype}"]
        chosen = cases.select((operation,), ("coco",), (16,), cases.MODES, device, same)
        found.append(
            Verdict(**here, operation=operation, dtype=dtype, parity=parity, ratio=_worst_ratio(chosen, parity))
        )
        print(f"cuda, {operation}: {found[-1]}", flush=True)
    replaced = record(found)
    print(f"{replaced}; replaced" if replaced else f"recorded in {place()}")


def _worst_ratio(listed: Iterable[Case], parity: bool, backend: str = "cuda") -> float | None:
    """The largest median time of a backend over that of the one that runs without a verdict; None where not timed."""
    ratios = list[float]()
    for case in listed if parity else ():
        other = first_able(case.operation, torch.device(case.device), case.dtype, verdict=False)
        tensors = cases.tensors(case)
        try:
            with cases.multiplying(case.tf32):
                steps = {name: measure.warm(name, case, tensors) for name in (backend, other)}
                times = timing.interleave(steps, rounds=30, seconds=1.0, sample=timing.sampler(case.device))
        except (RuntimeError, timing.StepError) as error:
            print(f"{case}: not timed: {gpu.first_line(error.__cause__ or error)}", flush=True)
            return None
        ratios.append(times[backend].percentile(50) / times[other].percentile(50))
    return max(ratios, default=None)


def outcomes(case: Case, listed: Iterable[rivals.Rival], inputs: str) -> Iterable[tuple[str, str, bool]]:
    """For each implementation at a case its name, a line, and whether it failed."""
    broken: dict[str, Exception] = {}
    checks = verify.compare(case, listed, broken=broken, alter=hostile if inputs == "hostile" else dict)
    names = (case.operation, case.shape.name, case.precision, inputs)
    for name in dict.fromkeys(check.rival for check in checks):
        own = [check for check in checks if check.rival == name]
        gradients = [check for check in own if check.quantity.startswith("gradient")]
        forward, gradient = _worst(check for check in own if check not in gradients), _worst(gradients)
        red = [check for check in own if not check.green]
        text = "".join(f"{part:{width}}" for part, width in zip((*names, name), _WIDTHS, strict=True))
        text += f"{forward.error:9.1e}{forward.allowed:9.1e}{gradient.error:10.1e}{gradient.allowed:9.1e}"
        text += f"  {gradient.quantity.removeprefix('gradient ')}"
        yield name, text + "".join(f"\n  OVER ITS BUDGET: {check}" for check in red), bool(red)
    for name, raised in broken.items():
        status, reason = measure.why(raised)
        yield name, f"{name} at {case}, {inputs} inputs: {status}: {reason}", True


def _worst(checks: Iterable[Check]) -> Check:
    """The check nearest to its budget, or farthest beyond it."""
    return max(checks, key=lambda check: check.error / check.allowed if check.allowed else check.error)


def hostile(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Inputs of other kinds than a network has at its start: features 10 times as large, every seventh value absent;
    joint vectors 8 times as large, which saturate the tanh; a graph with an empty row, a row of negative weights and a
    weight of 2.6, the largest of the authors' VOC graphs. Inputs on which float32 itself fails are none of these, see
    docs/benchmarks.md."""
    out = dict(tensors)
    for name in ("features", "feature_map"):
        if name in out:
            out[name] = out[name] * 10
            out[name][0].flatten()[::7] = 0
    for name in ("u", "v", "words"):
        if name in out:
            out[name] = out[name] * 8
    if "adjacency" in out:
        graph = out["adjacency"].clone()
        graph[0], graph[1], graph[2, 0] = 0, -graph[1], 2.6
        out["adjacency"] = graph
    if "attention" in out:  # h0 stays the product of its factors
        out["h0"] = torch.matmul(out["attention"].double(), out["features"].double()).to(out["h0"].dtype)
    elif "h0" in out:
        out["h0"] = out["h0"] * 10
    return out


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"benchmarks.parity: {error}")
