"""Reading beside computing: results of a function, in order, computed by threads a little ahead of their use."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_readers() -> int:
    """Threads that read images: one for each core that this process may use, at most 8."""
    return min(8, usable_cores())


def read_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, readers: int, ahead: int
) -> Iterator[Result]:
    """``map(function, items)`` by threads, which suits functions that free the interpreter's lock, as Pillow's do.

    Args:
        function: called once per item; an exception is raised where its result would come, and ends the iteration.
        items: taken one by one, never more than ``ahead`` before their results are used.
        readers: threads; 0 calls the function in this thread.
        ahead: results that may wait, at least 1.

    Raises:
        ValueError: readers below 0, or ahead below 1.
    """
    if readers < 0 or ahead < 1:
        raise ValueError(f"readers must be at least 0 and ahead at least 1, got {readers} and {ahead}")
    if readers == 0:
        yield from map(function, items)
        return
    source = iter(items)
    with ThreadPoolExecutor(readers, "ssgrl_fast-reader") as pool:
        waiting: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(source, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in islice(source, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def read_batches(
    function: Callable[[Item], Result], items: Sequence[Item], *, batch_size: int, readers: int | None = None
) -> Iterator[list[Result]]:
    """Results in lists of ``batch_size``, the last may be shorter; one batch is read while another one is used.

    Args:
        function, items: see :func:`read_ahead`.
        batch_size: at least 1.
        readers: None: :func:`default_readers`.
    """
    threads = default_readers() if readers is None else readers
    results = read_ahead(function, items, readers=threads, ahead=2 * batch_size)
    while batch := list(islice(results, batch_size)):
        yield batch
