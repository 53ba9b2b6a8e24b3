"""SIGINT and SIGTERM: a command that is stopped ends with status 130 or 143, never with that of a finished one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_Handler = Callable[[int, FrameType | None], object]


class Stopped(KeyboardInterrupt):
    """A signal asks the program to stop.

    Attributes:
        status: the exit status, 128 + the signal's number.
        advice: how to go on; empty where there is nothing to say.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status, self.advice = 128 + number, ""


def stop(number: int, frame: FrameType | None = None) -> None:
    """A handler that stops at once.

    Raises:
        Stopped: always.
    """
    raise Stopped(number)


@contextmanager
def handling(handler: _Handler) -> Iterator[None]:
    """Handle SIGINT and SIGTERM by ``handler`` meanwhile, where Python lets this thread do so; a signal that the parent
    process has us ignore, as for a job in the background, stays ignored."""
    earlier = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                earlier[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, former in earlier.items():
            signal.signal(number, former)


def obey_only_the_parent(worker: int = 0) -> None:
    """In a data loader's worker: end at SIGTERM from the parent process, ignore it and SIGINT from others. A batch
    scheduler sends its signal to every process, and a worker that dies before its parent looks like a crash."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for the thread that waits for it

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
