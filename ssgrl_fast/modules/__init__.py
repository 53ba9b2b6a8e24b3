"""The SSGRL head as torch.nn modules: semantic decoupling, graph propagation, label classifier, and the three together.

The kernels are chosen by :mod:`ssgrl_fast.functional`; the modules own the weights in the layout that it takes, so
nothing is packed per call.
"""

from ssgrl_fast.modules.captured import CapturedHead
from ssgrl_fast.modules.fp8_propagation import Fp8GraphPropagation
from ssgrl_fast.modules.graph_propagation import GraphPropagation
from ssgrl_fast.modules.head import SSGRLHead
from ssgrl_fast.modules.label_classifier import ClassRows, LabelClassifier
from ssgrl_fast.modules.pooled_decoupling import PooledDecoupling
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
