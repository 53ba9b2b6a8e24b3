"""Peak memory of a rival beyond its inputs, weights and their gradients, measured in a separate process.

There are two measures, because neither covers everything:

- ``resident``: the peak resident size of the process during the step (VmHWM, reset through /proc/self/clear_refs before
  it) minus the size before and the bytes of the remaining gradients. It includes memory allocated outside PyTorch (BLAS
  packing buffers, kernel scratch). Gradients that do not exist yet at the peak are subtracted as well, so in a training
  step it is a lower bound.
- ``allocator``: the peak of live bytes from PyTorch's allocator during the step, without the remaining gradients, which
  are identified by address. It does not include memory allocated elsewhere.

For inference, which has no gradients, ``resident`` is used; for a training step the larger of the two. Before the
measurement the same operation runs once at a tiny shape, so that code pages and threads are not counted.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness.peak import Measured, Peak, held_bytes, is_out_of_memory

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_MARK = "benchmarks.harness.memory result: "


def meter_missing() -> str | None:
    """None if memory can be measured on this system, otherwise the reason."""
    if not _STATUS.exists() or "VmHWM" not in _STATUS.read_text(encoding="ascii", errors="replace"):
        return "memory is measured through /proc/self/status (VmHWM), which only Linux has"
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError as error:
        return f"the peak cannot be set back through {_RESET}: {error}"
    return None


def peak_extra(step: Callable[[], Sequence[Tensor]], *, allocator: bool) -> Peak:
    """Run ``step`` once and measure its memory.

    Args:
        step: the measured function; it returns the gradients, which do not count as extra, and nothing in inference.
        allocator: meter PyTorch's allocator as well, through torch.profiler.

    Raises:
        RuntimeError: no meter on this system, with the reason.
    """
    reason = meter_missing()
    if reason is not None:
        raise RuntimeError(reason)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) if allocator else nullcontext() as profiler:
        gc.collect()
        _trim()
        before = _kibibytes("VmRSS")
        _RESET.write_text("5", encoding="ascii")
        kept = step()
        highest = _kibibytes("VmHWM")
    held = held_bytes(kept)
    resident = max(0, (highest - before) * 1024 - sum(held.values()))
    return Peak(resident, None if profiler is None else _allocator_peak(profiler, held))


def _allocator_peak(profiler: profile, held: dict[int, int]) -> int:
    """Highest sum of live allocations in a profile, without the bytes of ``held`` that remain at the end."""
    # The event tree is not public, but the only place that has an allocation's address; tests hold it to known sizes.
    tree = profiler.profiler.kineto_results.experimental_event_tree()  # type: ignore[union-attr]
    events = sorted(_allocations(tree))
    last = {pointer: index for index, (_, pointer, size) in enumerate(events) if size > 0}
    live, peak, sizes = 0, 0, dict[int, int]()
    for index, (_, pointer, size) in enumerate(events):
        if size > 0:
            counted = size - held[pointer] if pointer in held and last[pointer] == index else size
            sizes[pointer] = counted
            live += counted
        else:
            live -= sizes.pop(pointer, 0)  # memory from before the step has no entry and does not count when it goes
        peak = max(peak, live)
    return peak


def _allocations(events: Sequence[Any]) -> Iterator[tuple[int, int, int]]:
    """(time in ns, address, bytes; negative when freed) of every CPU allocation in an event tree."""
    stack = list(events)
    while stack:
        event = stack.pop()
        stack.extend(event.children)
        kind, fields = event.typed
        if kind == torch._C._profiler._EventType.Allocation and fields.device.type == "cpu":
            yield event.start_time_ns, fields.ptr, fields.alloc_size


@contextmanager
def limited(extra: int | None) -> Iterator[None]:
    """Limit the growth of the process's data to this many bytes, so that allocations beyond it fail.

    None sets no limit, and neither does a system without RLIMIT_DATA.
    """
    if extra is None or not _STATUS.exists():
        yield
        return
    import resource  # exists on POSIX systems only

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _kibibytes("VmData") * 1024 + extra
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def available() -> int | None:
    """Bytes that programs can allocate without swapping; None if the system does not report it."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    return next(
        int(line.split()[1]) * 1024 for line in info.read_text().splitlines() if line.startswith("MemAvailable")
    )


def measure(rival: str, case: dict[str, Any], threads: int, limit: int | None) -> Measured:
    """Measure the memory of one rival at one case in a separate process.

    Args:
        rival: its name in benchmarks.rivals.
        case: as benchmarks.harness.cases.from_description takes it.
        threads: intra-op threads.
        limit: bytes by which the process may grow before its allocations are refused; None is no limit.
    """
    request = json.dumps({"rival": rival, "case": case, "threads": threads, "limit": limit})
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.harness.memory", request],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if answers:
        answer = json.loads(answers[-1])
        peak = None if answer["peak"] is None else Peak(**answer["peak"])
        return Measured(peak, answer["status"], answer["reason"])
    if done.returncode == -9:
        return Measured(None, "out of memory", "the system ended the process (SIGKILL)")
    tail = done.stderr.strip().splitlines()
    return Measured(None, "failed", f"exit status {done.returncode}: {tail[-1] if tail else 'no message'}")


def child(rival: str, case: dict[str, Any], threads: int, limit: int | None) -> Measured:
    """In the separate process: build the case, load the code at a tiny shape, and measure one step."""
    from benchmarks import rivals
    from benchmarks.harness import cases
    from benchmarks.harness.timing import fixed_threads

    whole = cases.from_description(case)
    with fixed_threads(threads):
        reason = rivals.RIVALS[rival].refuses(whole)
        if reason is not None:
            return Measured(None, "unavailable", reason)
        rivals.step(rivals.RIVALS[rival].build(whole.tiny(), cases.tensors(whole.tiny())), whole.tiny())()
        program = rivals.RIVALS[rival].build(whole, cases.tensors(whole))
        run = rivals.step(program, whole)
        if rivals.RIVALS[rival].compiled:
            run()
        with limited(limit):
            try:
                return Measured(peak_extra(run, allocator=whole.mode == "train"))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return Measured(None, "out of memory", str(error).splitlines()[0])


def _trim() -> None:
    """Return freed memory to the system, so that the step must allocate its own (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _kibibytes(field: str) -> int:
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main(request: str) -> None:
    """Answer one request of :func:`measure` with one line on standard output."""
    print(_MARK + json.dumps(asdict(child(**json.loads(request)))))


if __name__ == "__main__":
    main(sys.argv[1])
