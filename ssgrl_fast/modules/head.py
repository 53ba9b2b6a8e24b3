"""The whole head, eq. 3–10, on a feature map."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor, nn

from ssgrl_fast._utils import checks
from ssgrl_fast._utils.pytorch import is_exporting
from ssgrl_fast.functional.arguments import check_steps
from ssgrl_fast.functional.graph_propagation import RESET_GATES
from ssgrl_fast.modules import _shared as shared
from ssgrl_fast.modules.ablated import ClassRows, PooledDecoupling
from ssgrl_fast.modules.class_constants import ClassConstants
from ssgrl_fast.modules.cuda_graph import CapturedHead, capture
from ssgrl_fast.modules.fp8 import Fp8GraphPropagation
from ssgrl_fast.modules.graph_propagation import GraphPropagation
from ssgrl_fast.modules.label_classifier import LabelClassifier
from ssgrl_fast.modules.semantic_decoupling import SemanticDecoupling
from ssgrl_fast.reference.factors import low_rank_pays

DECOUPLINGS = ("semantic", "average", "concat")
FORMATS = ("fp8",)


class SSGRLHead(nn.Module):
    """The whole head, from a feature map to logits (eq. 3–10).

    ``pooled, attention = SemanticDecoupling(map, words)``, ``h_T = GraphPropagation(pooled, adjacency)``,
    ``logits = LabelClassifier(h_T, pooled)``. Where identity 4 makes products smaller (L < C·D / (C + D)), pooled is
    handed on with its factors, attention and features; elsewhere its gradient is added up before it goes to them.

    Args:
        in_channels: D, the channels of the map.
        words: [C, S], one word vector per class; kept as a buffer in PyTorch's default dtype.
        adjacency: [C, C], row c holds P(c' | c); kept as a buffer in the same dtype.
        joint_dim: K of eq. 3.
        attention_dim: M, the inputs of f_a; None is K, as in the paper.
        out_dim: O of eq. 10; None is D, as in the paper.
        steps: T of eq. 9.
        mode: "paper" gives the reset gate its own U^r and the gates no biases; "official" follows the published code
            (D1, D3).
        gate_bias: whether the gates have biases; None follows the mode. True beside "paper" is the gate of HCP-MLR-PL.
        decoupling: "semantic" (eq. 3-6), or what the ablations of Table 5 start the nodes with: "average", the average
            of all locations ("w/o SD"), or "concat", that and the class's word vector mapped to D ("w/o SD-concat").
        interaction: False leaves out the graph: each class is scored from its decoupled feature ("w/o SI", 4.3).
        recompute: see :class:`GraphPropagation`.
        backend: a backend's name for all three operations; None is the fastest that can run the inputs.

    Raises:
        TypeError, ValueError: words or adjacency of the wrong type or shape, or not finite; an option out of range.
    """

    words: Tensor
    adjacency: Tensor
    graph_propagation: GraphPropagation | Fp8GraphPropagation | None
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
        gate_bias: bool | None = None,
        decoupling: Literal["semantic", "average", "concat"] = "semantic",
        interaction: bool = True,
        recompute: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        checks.check_choice("SSGRLHead", "mode", mode, RESET_GATES)
        checks.check_choice("SSGRLHead", "decoupling", decoupling, DECOUPLINGS)
        check_steps("SSGRLHead", steps)
        words, adjacency = shared.words_and_graph(words, adjacency)
        self.num_classes, self.in_channels = words.shape[0], shared.size("in_channels", in_channels)
        if out_dim is not None and not interaction:
            raise ValueError(f"SSGRLHead: out_dim is f_o's, and interaction=False has no f_o; got out_dim={out_dim}")
        if attention_dim is not None and decoupling != "semantic":
            raise ValueError(
                f"SSGRLHead: attention_dim is f_a's, and decoupling={decoupling!r} has no f_a; got {attention_dim}"
            )
        self.mode, self.steps, self.interaction, self.backend = mode, steps, interaction, backend
        self.gate_bias = gate_bias
        self.decoupling = decoupling
        self.register_buffer("words", words)
        self.register_buffer("adjacency", adjacency)
        self.semantic_decoupling: SemanticDecoupling | ClassConstants | PooledDecoupling
        if decoupling == "semantic":
            attention_dim = joint_dim if attention_dim is None else attention_dim
            self.semantic_decoupling = SemanticDecoupling(
                in_channels, words.shape[1], joint_dim, attention_dim, backend=backend
            )
        else:
            self.semantic_decoupling = PooledDecoupling(in_channels, words.shape[1], concat=decoupling == "concat")
        if interaction:
            self.graph_propagation = GraphPropagation(
                in_channels, steps, mode, bias=gate_bias, recompute=recompute, backend=backend
            )
            self.classifier = LabelClassifier(self.num_classes, in_channels, out_dim, backend=backend)
        else:
            self.graph_propagation = None
            self.classifier = ClassRows(self.num_classes, in_channels)

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that build this head again, without those of how it runs (recompute, backend)."""
        own = {name: getattr(self, name) for name in ("steps", "mode", "gate_bias", "decoupling", "interaction")}
        sizes = ("joint_dim", "attention_dim") if self.decoupling == "semantic" else ()
        joint = {name: getattr(self.semantic_decoupling, name) for name in sizes}
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
            return_attention: also return the attention.

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
        factored = self.decoupling == "semantic"  # pooled = attention @ features
        if factored and not is_exporting():  # an exported head serves maps of every size
            factored = low_rank_pays(self.num_classes, features.shape[1], self.in_channels)
        factors = (attention, features) if factored else ()
        graph_propagation = self.graph_propagation
        logits: Tensor
        if graph_propagation is None:
            logits = self.classifier(pooled)
        else:
            h_T = graph_propagation(pooled, self.adjacency, *factors)
            logits = self.classifier(h_T, pooled, *factors)
        if not return_attention:
            return logits
        return logits, attention.view(*attention.shape[:2], *x.shape[2:])

    @property
    def quantized(self) -> str | None:
        """The format that :meth:`quantize` put the propagation into, or None."""
        return "fp8" if isinstance(self.graph_propagation, Fp8GraphPropagation) else None

    @property
    def operations(self) -> tuple[str, str, str]:
        """The operations of :mod:`ssgrl_fast.functional` that the whole head runs."""
        return "semantic_attention", "graph_propagation_fp8" if self.quantized else "graph_propagation", "label_scores"

    def quantize(self, format: Literal["fp8"] = "fp8") -> Self:
        """A copy of this head for inference with the products of eq. 7–9 in e4m3, which at T = 3 are 27 of
        the head's 29 units of 2·C·D² FLOP.

        Everything else of the copy is bfloat16, its maps too. Bounds of every product's operands are known from the
        weights, the graph and each image's h_0, so nothing is calibrated; the gates are quantized for the graph that
        the head has now.

        Args:
            format: "fp8", e4m3 with scales that are powers of two (:mod:`ssgrl_fast.reference.e4m3`).

        Returns:
            A head in evaluation mode whose weights take no gradients; this one is left as it is.

        Raises:
            ValueError: another format, a head without a graph (``interaction=False``) or one that is quantized already,
                channels that are no multiple of 16, weights that are not finite.
        """
        checks.check_choice("SSGRLHead.quantize", "format", format, FORMATS)
        if not isinstance(self.graph_propagation, GraphPropagation):
            state = f"the head is quantized already ({self.quantized})" if self.quantized else "interaction=False"
            raise ValueError(f"SSGRLHead.quantize: a head with a graph in floating point is expected, got {state}")
        propagation = Fp8GraphPropagation(self.graph_propagation, self.adjacency)
        shared_parts = {id(self.graph_propagation): propagation}
        return deepcopy(self, shared_parts).to(torch.bfloat16).requires_grad_(False).eval()

    def capture(self, example: Tensor, batches: Sequence[int] = ()) -> CapturedHead:
        """The head's inference as CUDA graphs, for small batches, whose kernels run for less time than their launches
        take.

        Weights in the dtype of the map are read as they are; cast the head first (``head.bfloat16()``) rather than
        capture under autocast, which would cast them at every call.

        Args:
            example: a map [B, D, H, W] on a CUDA device; its shape behind B, dtype, strides and device are those of
                every later call.
            batches: further batch sizes that get a graph of their own, beside the example's.

        Returns:
            A function of a map that gives its logits [B, C], without gradients; B up to the largest size.

        Raises:
            ValueError: the example is not on a CUDA device or has no image; a batch size below 1.
            TypeError, ValueError: what a call of the head raises.
        """
        return capture("SSGRLHead", self, example, batches)

    def extra_repr(self) -> str:
        how = f"decoupling={self.decoupling!r}, interaction={self.interaction}"
        quantized = f", quantized={self.quantized!r}" if self.quantized else ""
        return f"mode={self.mode!r}, {how}, backend={self.backend!r}{quantized}"
