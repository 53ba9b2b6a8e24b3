"""The paper's equations 3–11 in plain PyTorch: the truth that every kernel is held to.

``semantic_attention``, ``graph_propagation`` and ``label_scores`` take the arguments of :mod:`ssgrl_fast.functional`
(without ``backend``), work in any float dtype and are differentiable, to any order, by PyTorch itself. Each module
holds beside them the forward and the hand-written backward that the ``reference`` backend runs.
"""

from ssgrl_fast.reference.graph_propagation import graph_propagation
from ssgrl_fast.reference.label_scores import label_scores
from ssgrl_fast.reference.published import published_head
from ssgrl_fast.reference.semantic_attention import semantic_attention

__all__ = ["graph_propagation", "label_scores", "published_head", "semantic_attention"]
