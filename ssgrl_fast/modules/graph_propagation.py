"""The module of eq. 7–9: B images, C classes, D channels, T propagation steps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssgrl_fast import functional
from ssgrl_fast._utils import checks
from ssgrl_fast.functional.arguments import check_steps
from ssgrl_fast.functional.graph_propagation import RESET_GATES
from ssgrl_fast.modules import _shared as shared


class GraphPropagation(nn.Module):
    """Gated propagation of the class states over the label graph (eq. 7–9).

    With a_c = [Σ_c' A_cc'·h_c' | Σ_c' A_c'c·h_c']:
    ``z = σ(W^z·a + U^z·h)``, ``r = σ(W^r·a + U^r·h)``, ``n = tanh(W·a + U·(r⊙h))``, ``h ← (1 − z)⊙h + z⊙n``.

    Args:
        dim: D, the size of a state.
        steps: T.
        reset_gate: "paper" as above; "official" takes U^z·h in r, as the published code does (D1): U^r is then stored,
            as it is there, but unused and its gradient is zero.
        bias: whether the gates have biases; None follows ``reset_gate``: the paper prints none, the published code has
            them (D3). A gate's bias is the sum of the published pair (those of its W and its U layer).
        recompute: in training keep only the state of each step, D values per node instead of 7·D in the kernels, and
            run each step again before its backward: a third more time in the products. The weights' gradients are then
            the sum of those of each step, rounded to the weights' dtype.
        backend: a backend's name; None is the fastest that can run the inputs.

    Parameters: ``weight_zr`` [2D, 3D] = [[U^z, W^z_in, W^z_out], [U^r, W^r_in, W^r_out]], ``weight_h`` [D, 3D] =
    [W_in, W_out, U], and with biases ``bias_zr`` [2D] and ``bias_h`` [D]; each block is initialised as the linear layer
    that the published code stores for it (fan-in 2D for W, D for U; D11).
    """

    bias_zr: nn.Parameter | None
    bias_h: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        steps: int = 3,
        reset_gate: Literal["paper", "official"] = "paper",
        *,
        bias: bool | None = None,
        recompute: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_steps("GraphPropagation", steps)
        checks.check_choice("GraphPropagation", "reset_gate", reset_gate, RESET_GATES)
        self.dim, self.steps, self.reset_gate, self.backend = shared.size("dim", dim), steps, reset_gate, backend
        self.recompute = recompute
        self.weight_zr = nn.Parameter(torch.empty(2 * dim, 3 * dim))
        self.weight_h = nn.Parameter(torch.empty(dim, 3 * dim))
        biased = reset_gate == "official" if bias is None else bias
        self.register_parameter("bias_zr", nn.Parameter(torch.empty(2 * dim)) if biased else None)
        self.register_parameter("bias_h", nn.Parameter(torch.empty(dim)) if biased else None)
        self.reset_parameters()

    def gates(self) -> dict[str, Tensor]:
        """The packed weights by the paper's names, as views: W_z, W_r, W [D, 2D]; U_z, U_r, U [D, D]."""
        dim = self.dim
        return {
            "W_z": self.weight_zr[:dim, dim:],
            "U_z": self.weight_zr[:dim, :dim],
            "W_r": self.weight_zr[dim:, dim:],
            "U_r": self.weight_zr[dim:, :dim],
            "W": self.weight_h[:, : 2 * dim],
            "U": self.weight_h[:, 2 * dim :],
        }

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw each block, and each published bias, from U(±1/√fan_in); a bias here is the sum of a published pair."""
        dim = self.dim
        for name, block in self.gates().items():
            shared.uniform(2 * dim if name.startswith("W") else dim, block)
        if self.bias_zr is None or self.bias_h is None:
            return
        shared.uniform(2 * dim, self.bias_zr, self.bias_h)
        state = self.bias_h.new_empty(3, dim)
        shared.uniform(dim, state)
        self.bias_zr[:dim].add_(state[0])
        self.bias_zr[dim:].add_(state[0 if self.reset_gate == "official" else 1])
        self.bias_h.add_(state[2])

    def forward(
        self, h0: Tensor, adjacency: Tensor, attention: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor:
        """Run T steps from h0.

        Args:
            h0: [B, C, D], the weights' dtype (under autocast any of float32, float16, bfloat16).
            adjacency: [C, C], row c holds P(c' | c); a constant.
            attention, features: [B, C, L] and [B, L, D], the factors of h0; given, they take all of its gradient.

        Returns:
            h_T [B, C, D].

        Raises:
            TypeError, ValueError: an argument of the wrong type, shape, dtype or device; the message names it.
        """
        if not (self.recompute and torch.is_grad_enabled()):
            return self._propagate(h0, adjacency, attention, features, self.steps)
        h = h0
        for step in range(self.steps):
            factors = (attention, features) if step == 0 else (None, None)
            h = checkpoint(self._propagate, h, adjacency, *factors, 1, use_reentrant=False, preserve_rng_state=False)
        return h

    def _propagate(
        self, h0: Tensor, adjacency: Tensor, attention: Tensor | None, features: Tensor | None, steps: int
    ) -> Tensor:
        return functional.graph_propagation(
            h0,
            adjacency,
            self.weight_zr,
            self.bias_zr,
            self.weight_h,
            self.bias_h,
            steps=steps,
            attention=attention,
            features=features,
            reset_gate=self.reset_gate,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"{self.dim}, steps={self.steps}, reset_gate={self.reset_gate!r}, bias={self.bias_zr is not None}"
