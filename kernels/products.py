"""Matrix products, which go to the vendor's library: on one H100 cuBLAS took the gates' product at 762–770 TFLOP/s and
the candidate's at 628–715 in bfloat16, a persistent Triton product 684–712 and 510–566 (torch 2.11, triton 3.6), more
than a fused epilogue saves.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product(out: Tensor, a: Tensor, b: Tensor, add: bool = False) -> None:
    """out (+)= a @ b, for matrices [m, k] x [k, n] or batches of them; any strides, ``out`` a view of a larger tensor.

    With ``add`` the sum is formed in the product's accumulator and rounded once.
    """
    if out.numel() == 0:
        return
    into = torch.addmm if out.dim() == 2 else torch.baddbmm
    into(out, a, b, beta=1 if add else 0, out=out)


def units(matrix: Tensor, dim: int, first: int, last: int) -> Tensor:
    """Columns first·dim to last·dim of the last axis, as a view."""
    return matrix[..., first * dim : last * dim]
