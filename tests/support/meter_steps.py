"""Steps whose memory is known, metered in a process of their own: ``python tests/support/meter_steps.py STEP …``.

A process that has run hundreds of tests holds much that the system takes back at any moment, which a meter of resident
memory would count. Prints the peaks as JSON, in order.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from benchmarks.harness import memory

MB = 10**6


def grow(*, kept: int, beside: int) -> Sequence[Tensor]:
    """Hold ``beside`` bytes, free them, and return ``kept`` bytes; both written to."""
    result = torch.ones(kept // 4) if kept else None
    room = torch.ones(beside // 4)
    del room
    torch.ones(beside // 8).sum()
    return () if result is None else (result,)


def shared_storage() -> Sequence[Tensor]:
    """96 MB, of which 64 MB are gradients that share a storage, and one expanded from a single value."""
    room = torch.ones(3, 8 * MB)
    return room[0], room[1], torch.ones(1).expand(64 * MB)


def early_peak() -> Sequence[Tensor]:
    """64 MB, gone before the 128 MB that remain are allocated."""
    torch.ones(16 * MB).sum()
    return (torch.ones(32 * MB),)


STEPS = {
    "beside 256": lambda: grow(kept=0, beside=256 * MB),
    "beside 128": lambda: grow(kept=0, beside=128 * MB),
    "kept 128 beside 64": lambda: grow(kept=128 * MB, beside=64 * MB),
    "shared storage": shared_storage,
    "early peak": early_peak,
}


if __name__ == "__main__":
    print(json.dumps([asdict(memory.peak_extra(STEPS[name], allocator=True)) for name in sys.argv[1:]]))
