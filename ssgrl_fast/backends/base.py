"""What a backend is: a name, a reason for each thing it cannot run, and the six functions that it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

STEMS = ("semantic_attention", "graph_propagation", "label_scores")
INFERENCE_STEMS = ("graph_propagation_fp8",)
"""Operations without a backward, which a backend may lack."""


class BackendUnavailable(RuntimeError):
    """A backend that was named cannot run these inputs; the message gives its reason."""


@dataclass(frozen=True)
class Backend:
    """One way to compute the operations.

    ``refuses(stem, device_type, dtype)`` gives None where this backend can run, otherwise the reason why not.
    ``functions`` holds ``<stem>_forward`` and ``<stem>_backward``; they know nothing of autograd and get checked
    inputs:

    - ``semantic_attention_forward(u, v, p, features) -> pooled, attention``
    - ``semantic_attention_backward(grad_pooled?, grad_attention?, u, v, p, features, attention, need_features)
      -> d_u, d_v, d_p, d_features?``
    - ``graph_propagation_forward(h0, adjacency, attention?, features?, weights, biases, steps, reset_gate, save)
      -> h_T, saved``; weights are [weight_zr, weight_h] or the six stored blocks w_z, u_z, w_r, u_r, w_h, u_h; biases
      are none, [bias_zr, bias_h] or b_z, b_r, b_h; saved is whatever the same backend's backward wants back
    - ``graph_propagation_backward(grad, h0, adjacency, attention?, features?, weights, biases, saved, steps,
      reset_gate, need_features) -> d_h0?, d_attention?, d_features?, d_weights, d_biases``
    - ``label_scores_forward(h_T, h0, attention?, features?, weight_o, bias_o?, weight_c, bias_c?, save)
      -> logits, saved``
    - ``label_scores_backward(grad, h_T, h0, attention?, features?, weight_o, bias_o?, weight_c, bias_c?, saved,
      need_features) -> d_h_T, d_h0?, d_attention?, d_features?, d_weight_o, d_bias_o, d_weight_c, d_bias_c``
    - where the backend has it, ``graph_propagation_fp8_forward(h0, adjacency, gates, steps) -> h_T``

    A question mark stands for "or None": an argument that was left out, a gradient that has no place to go.
    """

    name: str
    refuses: Callable[[str, str, torch.dtype], str | None]
    functions: Mapping[str, Callable[..., Any]]

    def refusal(self, stem: str, device_type: str, dtype: torch.dtype) -> str | None:
        """Why this backend does not run an operation on such a device in such a dtype; None where it does."""
        if f"{stem}_forward" not in self.functions:
            return f"it has no {stem}"
        return self.refuses(stem, device_type, dtype)


def missing_gpu(least: tuple[int, int]) -> str | None:
    """Why kernels of this compute capability and newer do not run on the current GPU; None where they do."""
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < least:
        return f"its kernels need compute capability {least[0]}.{least[1]} or newer, this GPU has {major}.{minor}"
    return None


def fp8_dtype(stem: str, dtype: torch.dtype) -> str | None:
    """Why graph_propagation_fp8 does not take states of this dtype; None for bfloat16, and for other operations."""
    if stem not in INFERENCE_STEMS or dtype == torch.bfloat16:
        return None
    return f"{stem} keeps its states in bfloat16, not in {str(dtype).removeprefix('torch.')}"
