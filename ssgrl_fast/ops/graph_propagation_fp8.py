"""The operator ``graph_propagation_fp8`` (eq. 7–9 for inference with products in e4m3): its fake. No autograd: it has
no gradient.
"""

from __future__ import annotations

from torch import Tensor

from ssgrl_fast.ops.fakes import register_library_fake


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
    return h0.new_empty(h0.shape)


register_library_fake("graph_propagation_fp8", _fake)
