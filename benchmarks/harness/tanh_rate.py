"""The tanh rate of a GPU's special-function units: a Triton kernel of dependent tanh.approx and one store."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

REPEATS, BLOCK, BLOCKS = 256, 1024, 64
"""tanh per chain; values per program (eight per thread, to hide latency); programs per multiprocessor."""


@triton.jit
def tanh_chain(p_out, REPEATS: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = tanh(tanh(… (i / 1000))), REPEATS times."""
    i_out = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = i_out.to(tl.float32) * 1e-3
    for _ in range(REPEATS):
        x = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(p_out + i_out, x)


def chain(multiprocessors: int) -> tuple[Callable[[], object], int]:
    """A function that launches the kernel over the whole GPU, and the number of tanh it evaluates."""
    programs = multiprocessors * BLOCKS
    out = torch.empty(programs * BLOCK, device="cuda")
    return lambda: tanh_chain[(programs,)](out, REPEATS=REPEATS, BLOCK=BLOCK), programs * BLOCK * REPEATS
