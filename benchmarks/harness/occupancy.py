"""Facts of the GPUs that bounds are reckoned for, and how many programs a multiprocessor holds at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """Rates of one GPU.

    ``copy`` and ``product`` of the H100 80GB were measured (torch 2.11, CUDA 13.0): a copy, and cuBLAS in bfloat16 on
    the gates' product; its clock follows from the measured rate of tanh, 16 a clock. The others have their nominal
    rates times the share of the nominal rate that the H100 reached. Lanes are the results of a clock and
    multiprocessor in the CUDA C++ Programming Guide's table of arithmetic instructions.
    """

    name: str
    architecture: str
    processors: int
    clock: float  # Hz
    copy: float  # bytes/s
    product: float  # FLOP/s
    tensor: int  # FLOP of a clock and multiprocessor, nominal
    fma: int  # lanes of float32
    shared: int  # bytes of shared memory of a multiprocessor
    cache: int  # bytes of its L2 cache


_COPY, _PRODUCT = 2.98 / 3.35, 770 / 989  # the H100's shares of its nominal rates
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("H100", "sm_90", 132, 1.755e9, 2.98e12, 770e12, 4096, 128, 228 * 1024, 50 * 2**20),
        GPU("H200", "sm_90", 132, 1.755e9, 4.8e12 * _COPY, 770e12, 4096, 128, 228 * 1024, 50 * 2**20),
        GPU("A100", "sm_80", 108, 1.41e9, 2.039e12 * _COPY, 312e12 * _PRODUCT, 2048, 64, 164 * 1024, 40 * 2**20),
    )
}
LANES = {"issue": 128, "alu": 64, "imad": 64, "xu": 16, "lsu": 32}
"""Lanes of a multiprocessor, beside ``GPU.fma``: instructions issued, integers and comparisons, products of integers,
special functions and conversions, loads and stores (128 bytes)."""
L2_BYTES = 5120
"""Bytes of a clock from the L2 cache to all multiprocessors: the A100's whitepaper; assumed for the others."""
_REGISTERS, _WARPS, _BLOCKS, _RESERVED = 65536, 64, 32, 1024  # of a multiprocessor, both architectures


def resident(gpu: GPU, registers: int, warps: int, shared: int) -> int:
    """Programs that a multiprocessor holds: the rules of the CUDA occupancy calculator for 8.0 and 9.0.

    Args:
        gpu: where.
        registers: of a thread; a warp takes them in units of 256, from the quarter of them that its scheduler has.
        warps: of a program.
        shared: bytes that a program asks for, beside which the driver takes 1 KiB; in units of 128.
    """
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = 4 * (_REGISTERS // 4 // of_warp) // warps if registers else _BLOCKS
    by_shared = gpu.shared // (-(-(shared + _RESERVED) // 128) * 128)
    return min(by_registers, by_shared, _WARPS // warps, _BLOCKS)


def pipe_cycles(gpu: GPU, counts: Mapping[str, float]) -> dict[str, float]:
    """Cycles that a multiprocessor's pipes need for the counts of :func:`benchmarks.harness.reckoned.pipes`."""
    busy = {name: 32 * counts.get(name, 0) / lanes for name, lanes in LANES.items()}
    busy["fma"] = 32 * counts.get("fma", 0) / gpu.fma + busy.pop("imad")  # integer products run on the same pipe
    busy["tensor"] = counts.get("flop", 0) / gpu.tensor
    busy["L2"] = counts.get("bytes", 0) * gpu.processors / L2_BYTES
    return busy
