"""Tile tables: the tile extents and numbers of warps of every kernel by architecture and, where it matters, dtype.

There is no autotuning at run time, so the first call does not wait for it. ``python -m benchmarks.tune`` measures
candidates on the GPU it runs on. The tables were chosen by the registers, spills and shared memory of the compiled code
(``python -m benchmarks.resources``) and have not been measured on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ssgrl_fast.kernels.activations import INTERPRETED

Tiles = dict[str, Any]
"""Constants of a kernel launch: BLOCK_* extents, num_warps and num_stages."""

_GENERIC: dict[str, Tiles] = {
    # one warp, lanes along k: a lane has BLOCK_R·BLOCK_C values in registers
    "scores_exact": {"BLOCK_R": 8, "BLOCK_C": 8, "BLOCK_K": 32, "num_warps": 1},
    "scores_exact_backward": {"BLOCK_R": 16, "BLOCK_C": 2, "BLOCK_K": 32, "num_warps": 1},
    "split_scores": {"BLOCK_R": 64, "BLOCK_C": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
    "class_powers": {"BLOCK_C": 32, "BLOCK_K": 32, "num_warps": 4},
    "scaled_gradient": {"BLOCK_R": 32, "BLOCK_C": 32, "num_warps": 4},
    "split_d_rows": {"BLOCK_R": 64, "BLOCK_C": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
    "split_d_classes": {"BLOCK_R": 32, "BLOCK_C": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
    "split_d_classes/float16": {"BLOCK_R": 32, "BLOCK_C": 64, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2},
    "softmax": {"VALUES": 512, "num_warps": 4},
    "pool": {"BLOCK_C": 64, "BLOCK_L": 128, "BLOCK_D": 128, "AT_ONCE": 1, "num_warps": 8, "num_stages": 2},
    "pool_few": {"BLOCK_C": 16, "BLOCK_L": 128, "BLOCK_D": 128, "AT_ONCE": 4, "num_warps": 4, "num_stages": 3},
    "aggregate": {"BLOCK_C": 64, "BLOCK_D": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3},
    "gated_product": {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 4},
    "gated_product_few": {"BLOCK_M": 128, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 5},
    "rows": {"BLOCK_R": 1, "BLOCK_D": 1024, "num_warps": 4},
    "rows/float16": {"BLOCK_R": 1, "BLOCK_D": 512, "num_warps": 4},
    "rows/float64": {"BLOCK_R": 1, "BLOCK_D": 512, "num_warps": 4},
    "classify": {"BLOCK_R": 1, "BLOCK_O": 512, "num_warps": 4},
    "classify_backward": {"BLOCK_C": 1, "BLOCK_O": 256, "num_warps": 4},
    # float64 is for checking, not for speed: small tiles
    "scores_exact/float64": {"BLOCK_R": 4, "BLOCK_C": 2, "BLOCK_K": 32, "num_warps": 1},
    "scores_exact_backward/float64": {"BLOCK_R": 4, "BLOCK_C": 1, "BLOCK_K": 32, "num_warps": 1},
    "classify_backward/float64": {"BLOCK_C": 1, "BLOCK_O": 128, "num_warps": 4},
}
_AMPERE: dict[str, Tiles] = {  # 8.0 alone spills with larger ones in float32
    "scores_exact/float32": {"BLOCK_R": 8, "BLOCK_C": 4, "BLOCK_K": 32, "num_warps": 1},
    "rows/float32": {"BLOCK_R": 1, "BLOCK_D": 512, "num_warps": 4},
}
_SMALL: dict[str, Tiles] = {  # 8.6, 8.7, 8.9 and 12.0
    "split_scores": {"BLOCK_R": 32, "BLOCK_C": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
    "aggregate": {"BLOCK_C": 64, "BLOCK_D": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3},
}
_HOPPER: dict[str, Tiles] = {  # products need fewer registers there, so fewer warps hold the same tiles
    "gated_product": {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 4},
    "gated_product_few": {"BLOCK_M": 128, "BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 6},
    "split_scores": {"BLOCK_R": 64, "BLOCK_C": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
    "aggregate": {"BLOCK_C": 128, "BLOCK_D": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3},
    "split_d_rows": {"BLOCK_R": 64, "BLOCK_C": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
    "split_d_classes": {"BLOCK_R": 64, "BLOCK_C": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
    "split_d_classes/float16": {"BLOCK_R": 64, "BLOCK_C": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
}
_BLACKWELL: dict[str, Tiles] = {
    "split_scores/float16": {"BLOCK_R": 64, "BLOCK_C": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
    "split_d_rows": {"BLOCK_R": 64, "BLOCK_C": 32, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
    "split_d_classes": {"BLOCK_R": 64, "BLOCK_C": 32, "BLOCK_K": 16, "num_warps": 8, "num_stages": 2},
}
_INTERPRETER: dict[str, Tiles] = {  # the interpreter's time grows with programs and instructions, so tiles are large
    "scores_exact": {"BLOCK_R": 16, "BLOCK_C": 16, "BLOCK_K": 128},
    "scores_exact_backward": {"BLOCK_R": 16, "BLOCK_C": 16, "BLOCK_K": 128},
    "split_scores": {"BLOCK_R": 64, "BLOCK_C": 64, "BLOCK_K": 32},
    "split_d_rows": {"BLOCK_R": 64, "BLOCK_C": 64, "BLOCK_K": 32},
    "split_d_classes": {"BLOCK_R": 64, "BLOCK_C": 64, "BLOCK_K": 32},
    "class_powers": {"BLOCK_C": 64, "BLOCK_K": 64},
    "scaled_gradient": {"BLOCK_R": 64, "BLOCK_C": 64},
    "softmax": {"VALUES": 8192},
    "pool": {"BLOCK_C": 64, "BLOCK_L": 64, "BLOCK_D": 64, "AT_ONCE": 1},
    "pool_few": {"BLOCK_C": 32, "BLOCK_L": 64, "BLOCK_D": 128, "AT_ONCE": 4},
    "aggregate": {"BLOCK_C": 64, "BLOCK_D": 128, "BLOCK_K": 64},
    "gated_product": {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 64},
    "gated_product_few": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64},
    "rows": {"BLOCK_R": 64, "BLOCK_D": 128},
    "classify": {"BLOCK_R": 64, "BLOCK_O": 64},
    "classify_backward": {"BLOCK_C": 64, "BLOCK_O": 64},
}
TABLES: dict[str, dict[str, Tiles]] = {
    "sm_80": _GENERIC | _AMPERE,
    "sm_90": _GENERIC | _HOPPER,
    "sm_100": _GENERIC | _BLACKWELL,
    "generic": _GENERIC | _SMALL,
    "interpreter": {name: tile for name, tile in _GENERIC.items() if "/" not in name} | _INTERPRETER,
}
"""Architecture -> kernel -> tiles; an entry ``kernel/dtype`` takes precedence over ``kernel``."""


def tiles(kernel: str, tensor: Tensor) -> Tiles:
    """The launch constants of a kernel for the device and dtype of a tensor."""
    table, own = TABLES[architecture(tensor.device)], _own(kernel, tensor.dtype)
    return table[own if own in table else kernel]


@functools.cache
def _own(kernel: str, dtype: torch.dtype) -> str:
    return f"{kernel}/{str(dtype).removeprefix('torch.')}"


def architecture(device: torch.device) -> str:
    """The name of the table for a device."""
    if _assumed is not None:
        return _assumed
    if INTERPRETED:
        return "interpreter"
    return _of_device(device)


@functools.cache
def _of_device(device: torch.device) -> str:
    return of_capability(*torch.cuda.get_device_capability(device))


def of_capability(major: int, minor: int) -> str:
    """The name of the table for the GPUs of a compute capability; 10.3 takes that of 10.0."""
    name = f"sm_{major}0"
    return name if name in TABLES and (major, minor) not in ((8, 6), (8, 7), (8, 9)) else "generic"


_assumed: str | None = None


@contextmanager
def assumed(name: str) -> Iterator[None]:
    """Within the block every device uses this table, for compilation without a GPU.

    Raises:
        ValueError: no table has this name.
    """
    global _assumed
    if name not in TABLES:
        raise ValueError(f"architecture must be one of {', '.join(TABLES)}, got {name!r}")
    before, _assumed = _assumed, name
    try:
        yield
    finally:
        _assumed = before
