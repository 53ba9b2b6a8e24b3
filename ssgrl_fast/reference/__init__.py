"""The paper's equations 3–11 in plain PyTorch: the truth that every kernel is tested against.

``semantic_attention``, ``graph_propagation`` and ``label_scores`` take the arguments of :mod:`ssgrl_fast.functional`
(without ``backend``), work in any float dtype and are differentiable, to any order, by PyTorch itself. Each module
holds beside them the forward and the hand-written backward that the ``reference`` backend runs.
``graph_propagation_fp8`` says what inference with operands in e4m3 rounds, and where.
"""

from ssgrl_fast.reference.graph_propagation import graph_propagation
from ssgrl_fast.reference.graph_propagation_fp8 import graph_propagation_fp8
from ssgrl_fast.reference.label_scores import label_scores
from ssgrl_fast.reference.published import published_head
from ssgrl_fast.reference.semantic_attention import semantic_attention

__all__ = ["graph_propagation", "graph_propagation_fp8", "label_scores", "published_head", "semantic_attention"]
