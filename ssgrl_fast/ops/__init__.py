"""The operations, all but that in e4m3 under autograd; importing this registers them, and the compiled library's fakes
where there is one.
"""

from ssgrl_fast.ops import graph_propagation, graph_propagation_fp8, label_scores, semantic_attention
from ssgrl_fast.ops.operation import apply

__all__ = ["apply", "graph_propagation", "graph_propagation_fp8", "label_scores", "semantic_attention"]
