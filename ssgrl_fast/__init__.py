"""SSGRL, multi-label recognition by semantic decoupling and gated graph propagation, with a fused head.

Importing compiles nothing and touches no GPU.
"""

from __future__ import annotations

import os
import sys
import types

_here = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(
    os.path.join(_here, "kernels")
):  # a source tree or an editable install: kernels/ lies beside the package
    kernels = types.ModuleType("ssgrl_fast.kernels")
    kernels.__path__ = [os.path.join(os.path.dirname(_here), "kernels")]
    sys.modules["ssgrl_fast.kernels"] = kernels

from ssgrl_fast import backends, functional, modules, reference  # noqa: E402
from ssgrl_fast._utils.memory import keep_memory  # noqa: E402
from ssgrl_fast._version import __version__  # noqa: E402
from ssgrl_fast.backends import BackendUnavailable, use_backend  # noqa: E402
from ssgrl_fast.labels import graph, words  # noqa: E402
from ssgrl_fast.models.prepare import prepare  # noqa: E402
from ssgrl_fast.models.ssgrl import SSGRL  # noqa: E402
from ssgrl_fast.modules import GraphPropagation, LabelClassifier, SemanticDecoupling, SSGRLHead  # noqa: E402
from ssgrl_fast.published.accelerate import accelerate, restore  # noqa: E402
from ssgrl_fast.published.checkpoint import load_official_checkpoint  # noqa: E402

__all__ = [
    "SSGRL",
    "BackendUnavailable",
    "GraphPropagation",
    "LabelClassifier",
    "SSGRLHead",
    "SemanticDecoupling",
    "__version__",
    "accelerate",
    "backends",
    "functional",
    "graph",
    "keep_memory",
    "load_official_checkpoint",
    "modules",
    "prepare",
    "reference",
    "restore",
    "use_backend",
    "words",
]
