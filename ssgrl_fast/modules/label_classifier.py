"""The module of eq. 10: B images, C classes, D channels, O output channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssgrl_fast import functional
from ssgrl_fast.modules import _shared as shared


class LabelClassifier(nn.Module):
    """Score each class from its final and first state with weights of its own (eq. 10).

    ``o_c = tanh(f_o([h_c^T, h_c^0]))``, ``s_c = weight_c[c]·o_c + bias_c[c]``.

    Args:
        num_classes: C.
        dim: D, the size of a state.
        out_dim: O; None is D, as in the paper.
        backend: a backend's name; None is the fastest that can run the inputs.

    Parameters: ``weight_o`` [O, 2D], ``bias_o`` [O], ``weight_c`` [C, O], ``bias_c`` [C]; all U(±1/√fan_in) (D11).
    """

    def __init__(self, num_classes: int, dim: int, out_dim: int | None = None, *, backend: str | None = None) -> None:
        super().__init__()
        self.num_classes, self.dim = shared.size("num_classes", num_classes), shared.size("dim", dim)
        self.backend = backend
        self.out_dim = dim if out_dim is None else shared.size("out_dim", out_dim)
        self.weight_o = nn.Parameter(torch.empty(self.out_dim, 2 * dim))
        self.bias_o = nn.Parameter(torch.empty(self.out_dim))
        self.weight_c = nn.Parameter(torch.empty(num_classes, self.out_dim))
        self.bias_c = nn.Parameter(torch.empty(num_classes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight and bias from U(±1/√fan_in) of its layer."""
        shared.uniform(2 * self.dim, self.weight_o, self.bias_o)
        shared.uniform(self.out_dim, self.weight_c, self.bias_c)

    def forward(
        self, h_T: Tensor, h0: Tensor, attention: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Logits [B, C] of h_T and h0, both [B, C, D]; attention and features are h0's factors, as for the graph.

        Raises:
            TypeError, ValueError: an argument of the wrong type, shape, dtype or device; the message names it.
        """
        return functional.label_scores(
            h_T,
            h0,
            self.weight_o,
            self.bias_o,
            self.weight_c,
            self.bias_c,
            attention=attention,
            features=features,
            backend=self.backend,
        )
