"""The SSGRL head as torch.nn modules: semantic decoupling, graph propagation, label classifier, and the three together.

Shapes: B images, H x W map, L = H·W locations, C classes, D feature channels (the paper's N), S word-vector size,
K joint channels (d_1), M attention channels (d_2), O output channels, T propagation steps. The kernels are chosen by
:mod:`ssgrl_fast.functional`; the modules own the weights in the layout that it takes, so nothing is packed per call.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ssgrl_fast import _module_checks as shared
from ssgrl_fast import checks, functional
from ssgrl_fast._autocast import without_autocast

MODES = ("paper", "official")

__all__ = ["ClassRows", "GraphPropagation", "LabelClassifier", "SSGRLHead", "SemanticDecoupling"]


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
        """p = Pᵀ·w_a, [K], in float32 (float64 for float64 weights), with exact gradients of P and w_a.

        The constants are connected through the unused branch of a selection: their gradients are zeros, never None, and
        nothing that they hold can reach p.
        """
        exact = checks.exact_dtype(self.weight_p.dtype)
        with without_autocast(self.weight_p):
            p = self.weight_p.to(exact).t() @ self.weight_a.to(exact)
        constant = self.bias_p.sum() + self.bias_a
        return torch.where(torch.ones((), dtype=torch.bool, device=p.device), p, constant.to(exact))

    def forward(self, features: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Pool the features once a class.

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
        shared.check_beside("SemanticDecoupling", self.weight_u, features=features, words=words)
        u = linear(features, self.weight_u)  # [B, L, K]
        v = linear(words, self.weight_v)  # [C, K]
        return functional.semantic_attention(u, v, self.collapsed(), features, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.word_dim}, joint_dim={self.joint_dim}, attention_dim={self.attention_dim}"


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
        backend: str | None = None,
    ) -> None:
        super().__init__()
        checks.check_steps("GraphPropagation", steps)
        checks.check_choice("GraphPropagation", "reset_gate", reset_gate, MODES)
        self.dim, self.steps, self.reset_gate, self.backend = shared.size("dim", dim), steps, reset_gate, backend
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
        """Draw each block, and each published bias, from U(±1/√fan_in); a pair of biases is drawn apart and summed."""
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
        return functional.graph_propagation(
            h0,
            adjacency,
            self.weight_zr,
            self.bias_zr,
            self.weight_h,
            self.bias_h,
            steps=self.steps,
            attention=attention,
            features=features,
            reset_gate=self.reset_gate,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"{self.dim}, steps={self.steps}, reset_gate={self.reset_gate!r}, bias={self.bias_zr is not None}"


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
        self.num_classes, self.dim, self.backend = (
            shared.size("num_classes", num_classes),
            shared.size("dim", dim),
            backend,
        )
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
        return (pooled * self.weight_c).sum(-1) + self.bias_c


class SSGRLHead(nn.Module):
    """The whole head, from a feature map to logits (eq. 3–10).

    ``pooled, attention = SemanticDecoupling(map, words)``, ``h_T = GraphPropagation(pooled, adjacency)``,
    ``logits = LabelClassifier(h_T, pooled)``. pooled is handed on with its factors, attention and features.

    Args:
        in_channels: D, the channels of the map.
        words: [C, S], one word vector a class; kept as a buffer in PyTorch's default dtype.
        adjacency: [C, C], row c holds P(c' | c); kept as a buffer in the same dtype.
        joint_dim: K of eq. 3.
        attention_dim: M, the inputs of f_a; None is K, as in the paper.
        out_dim: O of eq. 10; None is D, as in the paper.
        steps: T of eq. 9.
        mode: "paper" gives the reset gate its own U^r and the gates no biases; "official" follows the published code
            (D1, D3).
        interaction: False leaves out the graph: each class is scored from its decoupled feature ("w/o SI", 4.3).
        backend: a backend's name for all three operations; None is the fastest that can run the inputs.

    Raises:
        TypeError, ValueError: words or adjacency of the wrong type or shape, or not finite; an option out of range.
    """

    words: Tensor
    adjacency: Tensor
    graph_propagation: GraphPropagation | None
    classifier: LabelClassifier | ClassRows

    def __init__(
        self,
        in_channels: int,
        words: Tensor,
        adjacency: Tensor,
        *,
        joint_dim: int = 1024,
        attention_dim: int | None = None,
        out_dim: int | None = None,
        steps: int = 3,
        mode: Literal["paper", "official"] = "paper",
        interaction: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        checks.check_choice("SSGRLHead", "mode", mode, MODES)
        checks.check_steps("SSGRLHead", steps)
        words, adjacency = shared.words_and_graph(words, adjacency)
        self.num_classes, self.in_channels = words.shape[0], shared.size("in_channels", in_channels)
        if out_dim is not None and not interaction:
            raise ValueError(f"SSGRLHead: out_dim is f_o's, and interaction=False has no f_o; got out_dim={out_dim}")
        self.mode, self.steps, self.interaction, self.backend = mode, steps, interaction, backend
        self.register_buffer("words", words)
        self.register_buffer("adjacency", adjacency)
        attention_dim = joint_dim if attention_dim is None else attention_dim
        self.semantic_decoupling = SemanticDecoupling(
            in_channels, words.shape[1], joint_dim, attention_dim, backend=backend
        )
        if interaction:
            self.graph_propagation = GraphPropagation(in_channels, steps, mode, backend=backend)
            self.classifier = LabelClassifier(self.num_classes, in_channels, out_dim, backend=backend)
        else:
            self.graph_propagation = None
            self.classifier = ClassRows(self.num_classes, in_channels)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that build this head again, but for backend."""
        own = {name: getattr(self, name) for name in ("steps", "mode", "interaction")}
        joint = {name: getattr(self.semantic_decoupling, name) for name in ("joint_dim", "attention_dim")}
        return {**joint, "out_dim": getattr(self.classifier, "out_dim", None), **own}

    @overload
    def forward(self, x: Tensor, return_attention: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, return_attention: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Score a feature map.

        Args:
            x: [B, D, H, W], contiguous or channels_last (which needs no copy); dtype as the weights, under autocast any
                of float32, float16, bfloat16.
            return_attention: also return where each class looked.

        Returns:
            logits [B, C], before the sigmoid of eq. 11; with return_attention also attention [B, C, H, W], each map of
            which sums to 1.

        Raises:
            TypeError, ValueError: x of the wrong type, shape, dtype or device.
        """
        if not isinstance(x, Tensor) or x.dim() != 4:
            raise ValueError(f"SSGRLHead: x must be a map [B, {self.in_channels}, H, W], got {shared.describe(x)}")
        features = shared.as_rows(x, self.in_channels)
        pooled, attention = self.semantic_decoupling(features, self.words)
        if self.graph_propagation is None:
            logits = self.classifier(pooled)
        else:
            h_T = self.graph_propagation(pooled, self.adjacency, attention, features)
            logits = self.classifier(h_T, pooled, attention, features)
        if not return_attention:
            return logits
        return logits, attention.view(*attention.shape[:2], *x.shape[2:])

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, interaction={self.interaction}, backend={self.backend!r}"
