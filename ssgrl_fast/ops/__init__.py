"""The three operations under autograd; importing this registers them and, where it is compiled, the library's fakes."""

from ssgrl_fast.ops import graph_propagation, label_scores, semantic_attention
from ssgrl_fast.ops.operation import apply

__all__ = ["apply", "graph_propagation", "label_scores", "semantic_attention"]
