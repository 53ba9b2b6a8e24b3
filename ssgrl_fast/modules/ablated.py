"""The modules of the paper's ablations (section 4.3, Table 5): without semantic decoupling, without the graph.

Shapes: B images, L locations, C classes, D channels, S word dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssgrl_fast.modules import _shared as shared
from ssgrl_fast.reference.numerics import exact_dtype


class PooledDecoupling(nn.Module):
    """The image's average feature f in the place of the decoupled ones: "w/o SD" or "w/o SD-concat" of Table 5.

    ``f = mean_l(features_l)`` starts every node, or with ``concat`` ``W·[f, x_c] + b`` starts node c; W is kept in its
    two blocks, so that [f, x_c] is never stored.

    Args:
        in_channels: D.
        word_dim: S.
        concat: map [f, x_c] to D values.

    Parameters, with ``concat`` alone: ``weight_f`` [D, D], ``weight_x`` [D, S], ``bias`` [D]; U(±1/√(D+S)).
    """

    def __init__(self, in_channels: int, word_dim: int, *, concat: bool) -> None:
        super().__init__()
        self.in_channels, self.word_dim = shared.size("in_channels", in_channels), shared.size("word_dim", word_dim)
        self.concat = concat
        if concat:
            self.weight_f = nn.Parameter(torch.empty(in_channels, in_channels))
            self.weight_x = nn.Parameter(torch.empty(in_channels, word_dim))
            self.bias = nn.Parameter(torch.empty(in_channels))
            shared.uniform(in_channels + word_dim, self.weight_f, self.weight_x, self.bias)

    def forward(self, features: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Pool the features.

        Args:
            features: [B, L, D], or a map [B, D, H, W].
            words: [C, S]; without ``concat`` only their number counts.

        Returns:
            pooled [B, C, D]; attention [B, C, L], 1/L everywhere: that is what average pooling looks at.

        Raises:
            ValueError: features or words of another shape, or features without locations.
        """
        features = shared.as_rows(features, self.in_channels)
        batch, locations, _ = features.shape
        if words.dim() != 2 or words.shape[1] != self.word_dim:
            raise ValueError(f"PooledDecoupling: words must be [C, {self.word_dim}], got {shared.describe(words)}")
        exact = exact_dtype(features.dtype)
        attention = torch.full((batch, len(words), locations), 1 / locations, dtype=exact, device=features.device)
        mean = features.mean(1)  # [B, D]
        if not self.concat:
            return mean[:, None].expand(-1, len(words), -1).contiguous(), attention
        of_class = nn.functional.linear(words, self.weight_x, self.bias)  # [C, D]
        return nn.functional.linear(mean, self.weight_f)[:, None] + of_class, attention

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.word_dim}, concat={self.concat}"


class ClassRows(nn.Module):
    """The classifier of the paper's "w/o SI" ablation (4.3): class c's own weights on its decoupled feature.

    ``s[b, c] = weight_c[c]·pooled[b, c] + bias_c[c]``. Parameters: ``weight_c`` [C, D], ``bias_c`` [C]; U(±1/√D).
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.num_classes, self.dim = shared.size("num_classes", num_classes), shared.size("dim", dim)
        self.weight_c = nn.Parameter(torch.empty(num_classes, dim))
        self.bias_c = nn.Parameter(torch.empty(num_classes))
        shared.uniform(dim, self.weight_c, self.bias_c)

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits [B, C] of pooled [B, C, D].

        Raises:
            ValueError: another number of classes or channels.
        """
        if pooled.dim() != 3 or pooled.shape[1:] != self.weight_c.shape:
            expected = f"[B, {self.num_classes}, {self.dim}]"
            raise ValueError(f"ClassRows: pooled must be {expected}, got {list(pooled.shape)}")
        return torch.einsum("bcd,cd->bc", pooled, self.weight_c) + self.bias_c  # exported: as eq. 10's rows
