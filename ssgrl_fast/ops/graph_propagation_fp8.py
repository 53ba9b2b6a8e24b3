"""The operator ``graph_propagation_fp8`` (eq. 7–9 for inference with products in e4m3): its fake. No autograd: it has
no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssgrl_fast import _extension


def _fake(
    h0: Tensor,
    adjacency: Tensor,
    weight_zr: Tensor,
    scale_zr: Tensor,
    bias_zr: Tensor | None,
    weight_h: Tensor,
    scale_h: Tensor,
    bias_h: Tensor | None,
    inward: float,
    outward: float,
    steps: int,
) -> Tensor:
    return torch.empty(h0.shape, dtype=h0.dtype, device=h0.device)


if _extension.library() is None:
    torch.library.register_fake("ssgrl_fast::graph_propagation_fp8", _fake)
