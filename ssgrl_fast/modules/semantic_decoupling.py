"""The module of eq. 3–6: L = H·W locations, C classes, D channels, S word size, K joint and M attention channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ssgrl_fast import functional
from ssgrl_fast.modules import _shared as shared


class SemanticDecoupling(nn.Module):
    """Attend, for each class, to the locations that its word vector asks for, and pool the features there (eq. 3–6).

    ``e[b, c, l] = f_a(P·tanh((U·f[b, l]) ⊙ (V·x[c])) + b)``, ``attention = softmax_l(e)``,
    ``pooled[b, c] = Σ_l attention[b, c, l]·f[b, l]`` on the raw features (D2).

    P and f_a are linear, so they act through the K-vector ``p = Pᵀ·w_a`` alone, and their constant ``w_a·b + b_a`` is
    the same at every location: the softmax cancels it, its gradient is exactly zero (D4). All stay parameters.

    Args:
        in_channels: D.
        word_dim: S.
        joint_dim: K.
        attention_dim: M, the inputs of f_a.
        backend: a backend's name; None is the fastest that can run the inputs.

    Parameters: ``weight_u`` [K, D], ``weight_v`` [K, S], ``weight_p`` [M, K], ``bias_p`` [M], ``weight_a`` [M],
    ``bias_a`` [1]; initialised as PyTorch initialises linear layers (D11).
    """

    def __init__(
        self,
        in_channels: int,
        word_dim: int,
        joint_dim: int = 1024,
        attention_dim: int = 1024,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = shared.size("in_channels", in_channels)
        self.word_dim = shared.size("word_dim", word_dim)
        self.joint_dim = shared.size("joint_dim", joint_dim)
        self.attention_dim = shared.size("attention_dim", attention_dim)
        self.backend = backend
        self.weight_u = nn.Parameter(torch.empty(joint_dim, in_channels))
        self.weight_v = nn.Parameter(torch.empty(joint_dim, word_dim))
        self.weight_p = nn.Parameter(torch.empty(attention_dim, joint_dim))
        self.bias_p = nn.Parameter(torch.empty(attention_dim))
        self.weight_a = nn.Parameter(torch.empty(attention_dim))
        self.bias_a = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight and bias from U(±1/√fan_in) of its layer."""
        shared.uniform(self.in_channels, self.weight_u)
        shared.uniform(self.word_dim, self.weight_v)
        shared.uniform(self.joint_dim, self.weight_p, self.bias_p)
        shared.uniform(self.attention_dim, self.weight_a, self.bias_a)

    def collapsed(self) -> Tensor:
        """p = Pᵀ·w_a, [K], in float32 (float64 for float64 weights), with exact gradients of P and w_a."""
        return shared.collapse(self.weight_p, self.weight_a, self.bias_p, self.bias_a)

    def forward(self, features: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Pool the features once per class.

        Args:
            features: [B, L, D], or a map [B, D, H, W], contiguous or channels_last; the weights' dtype (any of
                float32, float16, bfloat16 under autocast).
            words: [C, S], the weights' dtype.

        Returns:
            pooled [B, C, D]; attention [B, C, L], float32 (float64 with float64 features).

        Raises:
            TypeError, ValueError: an argument of the wrong type, shape, dtype or device; the message names it.
        """
        features = shared.as_rows(features, self.in_channels)
        if not isinstance(words, Tensor) or words.dim() != 2 or words.shape[1] != self.word_dim:
            raise ValueError(f"SemanticDecoupling: words must be [C, {self.word_dim}], got {shared.describe(words)}")
        weight_u = self.weight_u
        shared.check_beside("SemanticDecoupling", weight_u, features=features, words=words)
        u = linear(features, weight_u)  # [B, L, K]
        v = linear(words, self.weight_v)  # [C, K]
        return functional.semantic_attention(u, v, self.collapsed(), features, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.word_dim}, joint_dim={self.joint_dim}, attention_dim={self.attention_dim}"
