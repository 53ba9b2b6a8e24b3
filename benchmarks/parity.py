"""``python -m benchmarks.parity``: only the parity check, over operations, shapes and precisions, without timing.

One line per case: the largest error of each rival as a share of the allowed error. The exit status is 1 if an error
exceeds its budget or a rival raises.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from benchmarks import rivals
from benchmarks.harness import cases, gpu, measure, verify
from benchmarks.harness.cases import Case

SHAPES = ("voc", "coco-448", "vg500")  # on both sides of identity 4's threshold, few classes and many


def main(argv: Sequence[str] | None = None) -> int:
    """Check every backend and rival that can run on the device of the command line.

    Raises:
        ValueError: the device does not exist, or does not support a precision.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to run")
    parser.add_argument("--operation", action="append", choices=cases.OPERATIONS, help="repeatable; default: all")
    parser.add_argument("--shape", action="append", choices=tuple(cases.SHAPES), help="repeatable")
    parser.add_argument("--dtype", action="append", choices=tuple(cases.PRECISIONS), help="repeatable; default: all")
    parser.add_argument("--compile", action="store_true", help="also check the rivals under torch.compile")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda":
        gpu.require()
    precisions = arguments.dtype or [name for name in cases.PRECISIONS if (arguments.device, name) != ("cpu", "tf32")]
    chosen = cases.select(
        arguments.operation or cases.OPERATIONS,
        arguments.shape or SHAPES,
        (2,),
        ("train",),
        arguments.device,
        precisions,
    )
    failed = 0
    for case in chosen:
        measure.forget_compiled()
        for line, red in verdicts(case, arguments.compile):
            print(line, flush=True)
            failed += red
    print(f"{failed} failed" if failed else "every rival that can run here is within its budget")
    return 1 if failed else 0


def verdicts(case: Case, compiled: bool) -> Iterator[tuple[str, bool]]:
    """Lines for a case and whether each is a failure: the rivals that pass, those that raise, those over their
    budget."""
    listed = [rival for rival in rivals.RIVALS.values() if rival.applies(case) and (compiled or not rival.compiled)]
    broken: dict[str, Exception] = {}
    try:
        checks = verify.gate(case, [rival for rival in listed if rival.refuses(case) is None], broken=broken)
    except verify.ParityError as error:
        yield "\n".join(map(str, error.red)), True
        checks = []
    for name, raised in broken.items():
        status, reason = measure.why(raised)
        yield f"{name} at {case}: {status}: {reason}", True
    worst: dict[str, float] = {}
    for check in checks:
        worst[check.rival] = max(worst.get(check.rival, 0.0), check.error / check.allowed)
    if worst:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in worst.items())
        yield f"{case.operation}, {case.shape.name}, {case.precision}: {shares}", False


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"benchmarks.parity: {error}")
