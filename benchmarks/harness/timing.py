"""Interleaved timing with a fixed number of threads: each rival runs once per round, so that changes of clock or load
affect all of them alike."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import gpu
from ssgrl_fast._utils.ahead import usable_cores


@dataclass(frozen=True)
class Timing:
    """Seconds of one rival, one entry per round."""

    seconds: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        """Linear interpolation between the ordered samples, like numpy's default."""
        return _percentile(self.seconds, percent)

    def ratio(self, other: Timing) -> float:
        """Median over the rounds of this rival's time over the other's in the same round (2.0 is twice as long).

        Raises:
            ValueError: the two have different numbers of rounds, so they were not interleaved.
        """
        if len(self.seconds) != len(other.seconds):
            raise ValueError(f"ratio: {len(self.seconds)} rounds against {len(other.seconds)}: not one interleaved run")
        return _percentile([a / b for a, b in zip(self.seconds, other.seconds, strict=True)], 50)


class StepError(RuntimeError):
    """A step raised during a run; ``name`` is its rival, ``__cause__`` the error."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} failed while it was timed")
        self.name = name


def interleave(
    steps: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    least: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    sample: Callable[[Callable[[], object]], float] | None = None,
    on_round: Callable[[int, float], None] | None = None,
) -> dict[str, Timing]:
    """Time each step once per round in the order of ``steps`` (a b c a b c ...).

    Args:
        steps: rival name -> function that runs a whole step; the steps must be warm.
        rounds: maximum number of rounds.
        seconds: no new round starts after this time, once ``least`` rounds are done.
        least: minimum number of rounds (at most ``rounds``).
        clock: seconds, monotonic.
        sample: runs one step and returns its seconds (used for a GPU's clock); None: ``clock`` before and after the
            step.
        on_round: called after each round with the number of rounds done and the share of the work done (0 to 1).

    Raises:
        StepError: a step raised; its name, and the error as the cause.
    """
    if rounds < 1:
        raise ValueError(f"interleave: rounds must be at least 1, got {rounds}")
    samples: dict[str, list[float]] = {name: [] for name in steps}
    measure = sample or (lambda step: _around(step, clock))
    begin = clock()
    for done in range(1, rounds + 1):
        for name, step in steps.items():
            try:
                samples[name].append(measure(step))
            except Exception as error:
                raise StepError(name) from error
        spent = clock() - begin
        enough = spent >= seconds and done >= min(least, rounds)
        if on_round is not None:
            on_round(
                done, 1.0 if enough else max(done / rounds, min(spent / seconds, done / least) if seconds > 0 else 0.0)
            )
        if enough:
            break
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def sampler(device: str) -> Callable[[Callable[[], object]], float]:
    """What runs a step and gives its seconds on a device: the host's clock, or a GPU's events behind an L2 flush."""
    return gpu.EventClock().sample if device == "cuda" else lambda step: _around(step, time.perf_counter)


def _around(step: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    step()
    return clock() - start


@contextmanager
def fixed_threads(threads: int) -> Iterator[None]:
    """Run with this many intra-op threads, and put the old number back.

    Raises:
        ValueError: less than one thread, or more than the cores this process may use.
    """
    cores = usable_cores()
    if not 1 <= threads <= cores:
        raise ValueError(f"threads must be between 1 and {cores} (the cores this process may use), got {threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: str) -> str:
    """The processor's or the GPU's name as the system gives it, for the results file.

    Raises:
        ValueError: a device that these benchmarks do not drive, or that is not there.
    """
    if device == "cuda":
        return gpu.device_name()
    if device != "cpu":
        raise ValueError(f"device must be cpu or cuda, got {device!r}")
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def load_average() -> float | None:
    """Processes that wanted to run, mean of the last minute; None where the system has no such figure (Windows)."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _percentile(values: Sequence[float], percent: float) -> float:
    if not values:
        raise ValueError("percentile of no samples")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
