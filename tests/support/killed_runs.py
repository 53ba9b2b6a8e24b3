"""Commands in processes that are killed at random moments, forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_VERBS = ("fit", "evaluate", "predict", "train")
_PEAK = "peak memory in bytes: "
_LONGEST = 300  # seconds of one command


def _run(arguments: list[str], log: str) -> None:
    """Run a command line in this process, its output in a file; the exit status is that of the process."""
    import torch

    from ssgrl_fast.cli import main

    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    status = main(arguments)
    print(f"\n{_PEAK}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}", flush=True)
    os._exit(status)


@cache
def _server() -> Any:
    """What processes are forked from, with everything imported: that is no part of the time of the first command."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "lightning.pytorch", *(f"ssgrl_fast.cli.{verb}" for verb in _VERBS)])
    first = context.Process(target=int)
    first.start()
    first.join()
    return context


def _start(arguments: Sequence[object], log: Path) -> Any:
    process = _server().Process(target=_run, args=([str(each) for each in arguments], str(log)))
    process.start()
    return process


def finish(arguments: Sequence[object], log: Path) -> float:
    """Run a command to its end, which must be a good one; the seconds that it took."""
    process, start = _start(arguments, log), time.perf_counter()
    process.join(_LONGEST)
    assert process.exitcode == 0, f"{arguments}: {process.exitcode}\n{log.read_text(errors='replace')[-3000:]}"
    return time.perf_counter() - start


def peak(log: Path) -> int:
    """The largest memory that the finished command of this log had, in bytes."""
    return int(log.read_text(errors="replace").rpartition(_PEAK)[2])


def kill(arguments: Sequence[object], log: Path, seconds: float) -> bool:
    """Run a command and kill it after some seconds; whether it lived until then."""
    process = _start(arguments, log)
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), log.read_text(errors="replace")[-3000:]
    return process.exitcode == -signal.SIGKILL


@dataclass
class Chaos:
    """Kills of one command.

    Attributes:
        command: its arguments.
        resume: gives the arguments that go on after a kill.
        check: raises AssertionError for a file that is not whole.
        result: what a finished command has computed.
        log: where its output goes.
    """

    command: Sequence[object]
    resume: Callable[[], Sequence[object]]
    check: Callable[[], object]
    result: Callable[[], object]
    log: Path
    seconds: float = 0.0
    expected: object = field(default=None)

    def prepare(self) -> None:
        """Run the command without a kill."""
        self.seconds = finish(self.command, self.log)
        self.check()
        self.expected = self.result()

    def strike(self, draw: random.Random) -> bool:
        """Kill the command at a random moment, look at its files, and let it go on; whether it was killed."""
        killed = kill(self.command, self.log, draw.uniform(0, self.seconds))
        self.check()
        if killed:
            finish(self.resume(), self.log)
            self.check()
        assert self.result() == self.expected
        return killed
