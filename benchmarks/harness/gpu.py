"""Measuring on a CUDA GPU: event timing after an L2 flush, the caching allocator's peak, and CUDA graph capture.

All calls go through ``driver``, which is ``torch.cuda`` except in tests, so that the order of the calls can be tested
without a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.peak import Measured, Peak, held_bytes, is_out_of_memory

WARM_UP = 3
"""Runs before a rival is timed: libraries choose their kernels and the allocator takes its blocks in the first ones."""


def missing(driver: Any = torch.cuda) -> str | None:
    """None if there is a CUDA device, otherwise a sentence with the reason."""
    if driver.is_available():
        return None
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return f"device cuda: torch {torch.__version__} ({built}) sees no CUDA device here; use --device cpu"


def require(driver: Any = torch.cuda) -> None:
    """Raise ValueError with the sentence of :func:`missing` where there is no device."""
    reason = missing(driver)
    if reason is not None:
        raise ValueError(reason)


class EventClock:
    """Seconds of one step on the device, between two events, after the L2 cache was written over.

    The flush is queued before the first event, so the launch of the step's first kernels hides behind it; a step whose
    launches take longer than its kernels is still as slow as its launches, as it is for a user.
    """

    def __init__(self, driver: Any = torch.cuda, room: Tensor | None = None) -> None:
        self._driver = driver
        if room is None:
            bytes_ = 2 * driver.get_device_properties(driver.current_device()).L2_cache_size
            room = torch.empty(max(bytes_, 2**20) // 4, dtype=torch.int32, device="cuda")
        self._room = room
        self._start, self._end = driver.Event(enable_timing=True), driver.Event(enable_timing=True)

    def sample(self, step: Callable[[], object]) -> float:
        """Seconds of one run."""
        self._room.zero_()
        self._start.record()
        step()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3


def peak_extra(step: Callable[[], Sequence[Tensor]], driver: Any = torch.cuda) -> Peak:
    """The allocator's peak over one step, above what was there before and without the gradients that remain.

    Gradients not yet there at the moment of the peak are subtracted all the same, so in a training step ``resident``
    is a lower bound; ``allocator`` is None, as the CPU's exact meter has no counterpart here.
    """
    gc.collect()
    driver.synchronize()
    driver.reset_peak_memory_stats()
    before = driver.memory_allocated()
    kept = step()
    driver.synchronize()
    return Peak(max(0, driver.max_memory_allocated() - before - sum(held_bytes(kept).values())))


def metered(step: Callable[[], Sequence[Tensor]], driver: Any = torch.cuda) -> Measured:
    """:func:`peak_extra`, or that the device had no room for it."""
    try:
        return Measured(peak_extra(step, driver))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
    release(driver)
    return Measured(None, "out of memory", reason)


def release(driver: Any = torch.cuda) -> None:
    """Free the memory that a rival left in the caching allocator."""
    gc.collect()
    driver.empty_cache()


def limit(extra: int | None, driver: Any = torch.cuda) -> None:
    """Let this process's tensors take at most this many bytes of the device beyond what they hold; None: all of it."""
    total = driver.get_device_properties(driver.current_device()).total_memory
    share = 1.0 if extra is None else min(1.0, (driver.memory_reserved() + extra) / total)
    driver.set_per_process_memory_fraction(share)


def graphed(step: Callable[[], object], driver: Any = torch.cuda) -> Callable[[], None]:
    """The step captured once as a CUDA graph: one launch, however many kernels it has.

    The step is run on a side stream first, as libraries may allocate in their first run, which a capture forbids.
    """
    side = driver.Stream()
    side.wait_stream(driver.current_stream())
    with driver.stream(side):
        step()
    driver.current_stream().wait_stream(side)
    graph = driver.CUDAGraph()
    with driver.graph(graph):
        step()
    return graph.replay  # type: ignore[no-any-return]


def device_name(driver: Any = torch.cuda) -> str:
    """The GPU's name as the driver gives it, for the results file."""
    require(driver)
    return str(driver.get_device_name())


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
