"""Matrix products, by PyTorch and so by the vendor's library.

Measured on one H100 in bfloat16 (torch 2.11, triton 3.6): cuBLAS reached 762–770 TFLOP/s for the product of the gates
and 628–715 for that of the candidate, a persistent Triton product 684–712 and 510–566. The difference is more than a
fused epilogue saves.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product(out: Tensor, a: Tensor, b: Tensor, add: bool = False) -> None:
    """out (+)= a @ b, for matrices [m, k] x [k, n] or batches of them; any strides; ``out`` may be a view.

    With ``add`` the sum is computed in the accumulator of the product and rounded once.
    """
    if out.numel() == 0:
        return
    into = torch.addmm if out.dim() == 2 else torch.baddbmm
    into(out, a, b, beta=1 if add else 0, out=out)


def units(matrix: Tensor, dim: int, first: int, last: int) -> Tensor:
    """Columns first·dim .. last·dim - 1 of the last axis, as a view."""
    return matrix[..., first * dim : last * dim]


def aligned_like(tensor: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of a shape, its rows beginning at multiples of 16 elements: vector loads, TMA copies."""
    return tensor.new_empty(*shape[:-1], -(-shape[-1] // 16) * 16)[..., : shape[-1]]


def aligned(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor, in a dtype, with rows that begin at multiples of 16 elements: itself if it has them."""
    dtype = dtype or tensor.dtype
    if dtype == tensor.dtype and tensor.shape[-1] % 16 == 0 and tensor.is_contiguous():
        return tensor
    return aligned_like(tensor.new_empty(0, dtype=dtype), *tensor.shape).copy_(tensor)
