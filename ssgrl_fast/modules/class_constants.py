"""Eq. 3–6 with what depends on the classes alone computed beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ssgrl_fast import functional
from ssgrl_fast.modules import _shared as shared
from ssgrl_fast.modules.semantic_decoupling import SemanticDecoupling


class ClassConstants(nn.Module):
    """:class:`SemanticDecoupling` for inference on one set of classes: v = V·x and p = Pᵀ·w_a are constants.

    Args:
        decoupling: whose values are taken, as they are now.
        words: [C, S], its weights' dtype.

    Buffers: ``weight_u`` [K, D], ``v`` [C, K], ``p`` [K], float32 or float64, which a conversion to a reduced dtype
    leaves in float32.
    """

    weight_u: Tensor
    v: Tensor
    p: Tensor

    def __init__(self, decoupling: SemanticDecoupling, words: Tensor) -> None:
        super().__init__()
        self.in_channels, self.word_dim = decoupling.in_channels, decoupling.word_dim
        self.joint_dim, self.attention_dim = decoupling.joint_dim, decoupling.attention_dim
        self.backend = decoupling.backend
        with torch.no_grad():
            self.register_buffer("weight_u", decoupling.weight_u.detach())
            self.register_buffer("v", linear(words, decoupling.weight_v))
            self.register_buffer("p", decoupling.collapsed())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        p = self.p
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.p.dtype in (torch.bfloat16, torch.float16):
            self.p = p.to(self.p.device, torch.float32)
        return self

    def forward(self, features: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`SemanticDecoupling.forward`; words are not read."""
        features = shared.as_rows(features, self.in_channels)
        shared.check_beside("SemanticDecoupling", self.weight_u, features=features)
        return functional.semantic_attention(
            linear(features, self.weight_u), self.v, self.p, features, backend=self.backend
        )

    def extra_repr(self) -> str:
        return f"{self.in_channels}, classes={self.v.shape[0]}, joint_dim={self.joint_dim}"
