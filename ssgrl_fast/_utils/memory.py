"""The C library's allocator: told to keep freed memory for the next use, and to return it when a work is done; and
Python's collector of cyclic garbage, told to wait.

glibc returns large freed blocks to the kernel at once, which then zeroes every page of the next block anew. PyTorch
allocates each activation on a CPU in this way, so a network spends much of its time there.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

__all__ = ["AllocatorPolicy", "keep_memory", "return_memory", "without_collections"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's parameters, of malloc.h
KEPT_BYTES = 2**31 - 1
"""Free memory at the end of the heap above which glibc returns it nevertheless."""
MAPPED_BYTES = 2**30
"""Size from which a block is still mapped, and returned, by itself."""
_LARGEST_BEFORE_GLIBC_2_35 = 2**25  # HEAP_MAX_SIZE / 2 on 64 bits: a larger mmap threshold is refused


@dataclass(frozen=True)
class AllocatorPolicy:
    """What becomes of freed memory.

    Attributes:
        kept: whether glibc's thresholds were raised, by any call in this process.
        reason: which allocator is in force and, where nothing was changed, why.
    """

    kept: bool
    reason: str

    def __str__(self) -> str:
        return f"{'kept' if self.kept else 'as the allocator does by default'} ({self.reason})"


class _SymbolInfo(ctypes.Structure):
    """Dl_info of dlfcn.h."""

    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


@cache
def keep_memory() -> AllocatorPolicy:
    """Let glibc keep the memory that is freed, for this process and the processes that it forks.

    Raises the two thresholds above which ``free`` returns memory to the kernel. Nothing is changed where another
    allocator is in force (jemalloc, tcmalloc, mimalloc, musl's, that of another system), or where the user has set
    glibc's own variables: ``MALLOC_...`` or ``GLIBC_TUNABLES`` with ``glibc.malloc``. Results are the same; a process
    may hold more memory between two uses, at most what it used at its peak, until :func:`return_memory`.

    The command line calls this; importing the library does not. Later calls change nothing.

    Returns:
        What is in force, and why.
    """
    obstacle = _obstacle(os.environ)
    if obstacle is not None:
        return AllocatorPolicy(False, obstacle)
    mallopt = ctypes.CDLL(None).mallopt
    mapped = mallopt(_MMAP_THRESHOLD, MAPPED_BYTES) or mallopt(_MMAP_THRESHOLD, _LARGEST_BEFORE_GLIBC_2_35)
    if not (mapped and mallopt(_TRIM_THRESHOLD, KEPT_BYTES)):
        return AllocatorPolicy(False, f"{_libc()} refused other thresholds")
    return AllocatorPolicy(True, f"{_libc()}, its mmap and trim thresholds raised by mallopt")


def return_memory() -> None:
    """Return free memory to the kernel, where :func:`keep_memory` has let it be kept; else nothing."""
    if keep_memory.cache_info().currsize and keep_memory().kept:
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))


@contextmanager
def without_collections() -> Iterator[None]:
    """Search for no cyclic garbage while modules are imported: they leave none, and the searches take a sixth of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _obstacle(environment: Mapping[str, str]) -> str | None:
    """Why this process's allocator is left as it is; None: it is glibc's, and nobody has set it up."""
    if not _libc().startswith("glibc"):
        return f"no glibc: {sys.platform}"
    file = _file_of_malloc()
    if not os.path.basename(file).startswith(("libc.so", "libc-")):
        return f"malloc comes from {file or 'an unknown place'}"
    if tuned := [name for name in environment if name.startswith("MALLOC_")]:
        return f"{_libc()}, {', '.join(sorted(tuned))} set by the user"
    if "glibc.malloc" in environment.get("GLIBC_TUNABLES", ""):
        return f"{_libc()}, GLIBC_TUNABLES set by the user"
    return None


def _libc() -> str:
    """Name and version of the C library, "glibc 2.36"; empty where it has none of this form."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):  # another system, or musl
        return ""


def _file_of_malloc() -> str:
    """The file that holds the malloc of this process: glibc's own, or that of an allocator put in its place."""
    program, info = ctypes.CDLL(None), _SymbolInfo()
    address = ctypes.cast(program.malloc, ctypes.c_void_p)
    if not program.dladdr(address, ctypes.byref(info)) or info.file is None:
        return ""
    return os.fsdecode(info.file)
