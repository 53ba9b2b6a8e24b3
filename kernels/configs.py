"""Tile tables: the extents and warps of every kernel by architecture. No kernel tunes itself while a user waits.

``python -m benchmarks.tune`` remakes a table on the GPU that it runs on. The tables here are chosen from registers, spills and shared
memory of the compiled code (tests/test_kernels_compile.py); they are not yet measured on a GPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from ssgrl_fast.kernels.tile import INTERPRETED

Tiles = dict[str, Any]
"""Constants of a kernel's launch: BLOCK_* extents, num_warps and num_stages."""

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "generic")

_GENERIC: dict[str, Tiles] = {
    # one warp, lanes along k: BLOCK_R·BLOCK_C values a lane
    "scores_exact": {"BLOCK_R": 8, "BLOCK_C": 8, "BLOCK_K": 32, "num_warps": 1},
    "scores_backward": {"BLOCK_R": 16, "BLOCK_C": 2, "BLOCK_K": 32, "num_warps": 1},
    "split_scores": {"BLOCK_R": 64, "BLOCK_C": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
    "split_d_rows": {"BLOCK_R": 64, "BLOCK_C": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
    "split_d_classes": {"BLOCK_R": 32, "BLOCK_C": 64, "BLOCK_K": 32, "ROWS": 1024, "num_warps": 8, "num_stages": 2},
    "pool": {"BLOCK_C": 32, "BLOCK_L": 32, "BLOCK_D": 64, "num_warps": 4},
    "softmax_backward": {"BLOCK_R": 4, "BLOCK_L": 128, "num_warps": 4},
    "aggregate": {"BLOCK_C": 64, "BLOCK_D": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
    "rows": {"BLOCK_R": 1, "BLOCK_D": 1024, "num_warps": 4},
    "output": {"BLOCK_R": 64, "BLOCK_O": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
    "classify": {"BLOCK_O": 512, "num_warps": 4},
    "classify_backward": {"BLOCK_O": 256, "num_warps": 4},
}
_INTERPRETER: dict[str, Tiles] = {  # cost is by program and instruction, so tiles are large
    "scores_exact": {"BLOCK_R": 16, "BLOCK_C": 16, "BLOCK_K": 128},
    "scores_backward": {"BLOCK_R": 16, "BLOCK_C": 16, "BLOCK_K": 128},
    "pool": {"BLOCK_C": 32, "BLOCK_L": 32, "BLOCK_D": 64},
    "aggregate": {"BLOCK_C": 64, "BLOCK_D": 128, "BLOCK_K": 64},
    "rows": {"BLOCK_R": 64, "BLOCK_D": 128},
    "output": {"BLOCK_R": 64, "BLOCK_O": 64, "BLOCK_K": 64},
}
TABLES: dict[str, dict[str, Tiles]] = {
    "generic": _GENERIC,
    "sm_80": _GENERIC,
    "sm_90": _GENERIC,
    "sm_100": _GENERIC,
    "interpreter": _GENERIC | _INTERPRETER,
}


def tiles(kernel: str, device: torch.device) -> Tiles:
    """The launch constants of a kernel on a device."""
    return TABLES[_architecture(device)][kernel]


@cache
def _architecture(device: torch.device) -> str:
    if INTERPRETED:
        return "interpreter"
    name = f"sm_{torch.cuda.get_device_capability(device)[0]}0"
    return name if name in TABLES else "generic"
