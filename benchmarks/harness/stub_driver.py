"""Triton's launches without a GPU: a driver that compiles for one and starts nothing.

What a launch costs in Python is the same up to the driver's own launcher, which is C++ for its most part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

Started = tuple[str, tuple[int, ...], tuple[Any, ...]]
"""A launch that arrived at the driver: the kernel's name, its grid, its arguments in their order."""


class _Driver:
    def __init__(self, architecture: int, started: list[Started] | None) -> None:
        def start(name: str, *arguments: Any) -> None:
            if started is not None:
                started.append((name, arguments[:3], arguments[9:]))

        class Launcher:
            def __init__(self, source: Any, metadata: Any) -> None:
                self.name = metadata.name

            def __call__(self, *arguments: Any) -> None:
                enter, leave = arguments[7:9]  # the C++ launcher calls them too
                if enter is not None:
                    enter(arguments[6])
                start(self.name, *arguments)
                if leave is not None:
                    leave(arguments[6])

        self.launcher_cls = Launcher
        self.target = GPUTarget("cuda", architecture, 32)
        properties = {"max_shared_mem": 2**30, "multiprocessor_count": 132}
        self.utils = SimpleNamespace(
            load_binary=lambda name, binary, shared, device: (1, 1, 0, 0, 1024),
            get_device_properties=lambda device: properties,
            unload_module=lambda module: None,
        )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def active(architecture: int = 90, *, note: bool = True, into: list[Started] | None = None) -> Iterator[list[Started]]:
    """Within the block Triton compiles for an architecture and launches arrive in the list, ``into``, or nowhere.

    A kernel that was launched here keeps what it compiled: no real launch of it may follow in this process.
    """
    started: list[Started] = [] if into is None else into
    drivers = triton.runtime.driver
    before = drivers._active  # asking for it would look for a GPU
    drivers.set_active(_Driver(architecture, started if note else None))
    try:
        yield started
    finally:
        drivers._active = before
