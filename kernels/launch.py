"""Kernel launches: arguments by name, no launch for an empty grid, and a mode that records launches instead.

Triton's own call works out for every launch which of its compiled kernels serves. Here that is remembered for what it
depends on: the kernel, the types and alignment of pointers, and the values of all other arguments, which also repeat
with the shapes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class Launch:
    """A recorded launch of a kernel."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class Started(NamedTuple):
    """A launch that was made, and how it is made again."""

    start: Callable[[dict[str, Any]], None]
    compiled: Any  # of Triton's; its function is unloaded with it
    grid: tuple[int, ...]
    in_order: Callable[[dict[str, Any]], tuple[Any, ...]]  # the arguments, by the kernel's order


class _Here(threading.local):
    noted: list[tuple[Started | None, dict[str, Any]]] | None = None


here = _Here()
"""Of this thread: ``here.noted`` is None, or a list that takes every launch after it was made, and None for one that a
hook of Triton's took."""
_recorder: list[Launch] | None = None
_known: dict[tuple[Any, ...], Started] = {}
PLAIN = frozenset((int, bool, float, str, tuple, type(None)))
"""Types of arguments beside tensors; isinstance(1, Tensor) takes long."""
_MOST_KNOWN = 4096
"""Launches that are remembered; beyond that (images of ever other sizes) all are forgotten."""


def run(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Launch a kernel on the current device, that of its first argument; an empty grid launches nothing."""
    if not all(grid):
        return
    if _recorder is not None:
        _recorder.append(Launch(kernel, grid, arguments))
        return
    if not isinstance(kernel, JITFunction):  # Triton's interpreter
        kernel[grid](**arguments)
        return
    values = [v if type(v) in PLAIN else (v.dtype, v.data_ptr() & 15) for v in arguments.values()]
    device = next(iter(arguments.values())).get_device()  # a tensor: the first argument of every launch
    key = (id(kernel), grid, device, *arguments, *values)
    if (started := _known.get(key)) is not None:
        started.start(arguments)
    elif (compiled := kernel[grid](**arguments)) is not None:  # else a hook of Triton's took it
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        started = _known[key] = _started(compiled, (*grid, 1, 1)[:3], device, itemgetter(*kernel.arg_names))
    if here.noted is not None:
        here.noted.append((started, arguments))


def hooked() -> bool:
    """Whether a profiler has hooked itself into the launches."""
    hooks = knobs.runtime
    return bool(hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls)


def recording() -> bool:
    """Whether launches are recorded instead of made."""
    return _recorder is not None


def _started(
    compiled: Any, grid: tuple[int, ...], device: int, in_order: Callable[[dict[str, Any]], tuple[Any, ...]]
) -> Started:
    """A launch whose ``start`` is ``compiled[grid](*arguments)`` without what that prepares for a profiler's hooks,
    where there are none."""
    launch, function, metadata, hooks = compiled.run, compiled.function, compiled.packed_metadata, knobs.runtime

    def start(arguments: dict[str, Any]) -> None:
        if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # hooked(), without its call
            compiled[grid](*in_order(arguments))
            return
        stream = driver.active.get_current_stream(device)
        launch(*grid, stream, function, metadata, None, None, None, *in_order(arguments))

    return Started(start, compiled, grid, in_order)


def cdiv(a: int, b: int) -> int:
    """a / b rounded up. Triton's own function of this name is made for kernels: on the host it takes 80 times as
    long."""
    return -(-a // b)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within the block kernels are recorded in the list instead of launched; their outputs are not written.

    Not safe while other threads launch kernels.
    """
    global _recorder
    before, _recorder = _recorder, []
    try:
        yield _recorder
    finally:
        _recorder = before


PROGRAMS = 4
"""Programs per multiprocessor at which a sum is split no further."""


def split(programs: int, extent: int, block: int, device: torch.device) -> tuple[int, int]:
    """Into how many parts of what size, a multiple of ``block``, a sum is split so that ``programs`` fill the GPU."""
    blocks = max(1, cdiv(extent, block))
    part = cdiv(blocks, max(1, min(blocks, PROGRAMS * multiprocessors(device) // max(programs, 1))))
    return cdiv(blocks, part), part * block


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; without one (interpreter, recording) as many as an H100 has."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
