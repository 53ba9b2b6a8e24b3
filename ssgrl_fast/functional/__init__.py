"""The head's three operations for users: they check their arguments, apply autocast's rule and run the chosen backend.

Shapes: B images, L = H·W locations, C classes, D feature channels, K joint channels, O output channels, T steps.

Under ``torch.autocast`` float32, float16 and bfloat16 arguments are cast to autocast's dtype, except p, attention and
the adjacency; with a float64 argument nothing is cast. Under ``torch.func`` transforms and in forward-mode
differentiation the reference equations run.

Repeatability: the same inputs give the same bits again, forward and backward, on one machine, backend, PyTorch and
number of threads. No kernel, of the CPU's or Triton's, adds in an order that depends on timing, so
``torch.use_deterministic_algorithms(True)`` changes nothing here; on a GPU PyTorch then wants CUBLAS_WORKSPACE_CONFIG
set for the products that it computes. The CPU kernels' own sums do not depend on the number of threads either, but the
matrix products between them are PyTorch's, and their float32 and float64 rounding can.

Threads and processes: any number of threads may call one head. A process forked after its parent has computed on
several threads hangs in its first parallel region, in PyTorch's own operators too (GNU OpenMP): call
``torch.set_num_threads(1)`` first in the child, as a DataLoader's workers do, or start it by ``spawn``.
"""

from ssgrl_fast.functional.graph_propagation import GateBlocks, graph_propagation, graph_propagation_blocks
from ssgrl_fast.functional.graph_propagation_fp8 import graph_propagation_fp8
from ssgrl_fast.functional.label_scores import label_scores
from ssgrl_fast.functional.semantic_attention import semantic_attention

__all__ = [
    "GateBlocks",
    "graph_propagation",
    "graph_propagation_blocks",
    "graph_propagation_fp8",
    "label_scores",
    "semantic_attention",
]
