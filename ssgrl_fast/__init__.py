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

# `python -m ssgrl_fast` imports the package before it runs; for --help and the like that is to stay light
_as_program = sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] == "ssgrl_fast"
if _as_program:
    from ssgrl_fast_cli import is_light
if not (_as_program and is_light(sys.argv[1:])):
    from ssgrl_fast import backends, functional, modules, reference
    from ssgrl_fast._utils.memory import keep_memory
    from ssgrl_fast._version import __version__
    from ssgrl_fast.backends import BackendUnavailable, use_backend
    from ssgrl_fast.labels import graph, words
    from ssgrl_fast.models.prepare import prepare
    from ssgrl_fast.models.ssgrl import SSGRL
    from ssgrl_fast.modules import GraphPropagation, LabelClassifier, SemanticDecoupling, SSGRLHead
    from ssgrl_fast.published.accelerate import accelerate, restore
    from ssgrl_fast.published.checkpoint import load_official_checkpoint

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
