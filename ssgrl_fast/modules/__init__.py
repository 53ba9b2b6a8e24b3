"""The SSGRL head as torch.nn modules: semantic decoupling, graph propagation, label classifier, and the three together.

The kernels are chosen by :mod:`ssgrl_fast.functional`; the modules own the weights in the layout that it takes, so
nothing is packed per call.
"""

from ssgrl_fast.modules.ablated import ClassRows, PooledDecoupling
from ssgrl_fast.modules.cuda_graph import CapturedHead
from ssgrl_fast.modules.fp8 import Fp8GraphPropagation
from ssgrl_fast.modules.graph_propagation import GraphPropagation
from ssgrl_fast.modules.head import SSGRLHead
from ssgrl_fast.modules.label_classifier import LabelClassifier
from ssgrl_fast.modules.semantic_decoupling import SemanticDecoupling

__all__ = [
    "CapturedHead",
    "ClassRows",
    "Fp8GraphPropagation",
    "GraphPropagation",
    "LabelClassifier",
    "PooledDecoupling",
    "SSGRLHead",
    "SemanticDecoupling",
]
