"""FLOP, bytes and tanh of a case, counted from its shape at the cheaper form: the minimum for any implementation.

- ``flop``: the matrix products of benchmarks.rivals.products, and the small ones beside them: X·V, p = wₐ·P,
  e = tanh(u·v)·p, the pooling a·F and the class rows. In training also the products of the gradients of both operands
  (none for the words).
- ``bytes``: every input and weight read once and every output written once; in training also the outputs' gradients
  read and the gradients of inputs and weights written, once. h0 is read from its factors if the case has them.
- ``tanh``: those of the attention (B·C·L·K; twice in training, because a form that stores nothing of that size
  evaluates them again), of the gates (a sigmoid counts as one) and of f_o.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from benchmarks.harness import cases
from benchmarks.harness.cases import Case
from benchmarks.rivals import products
from benchmarks.rivals.programs import CONSTANTS


@dataclass(frozen=True)
class Work:
    """The minimum work of a case."""

    flop: int
    bytes: int
    tanh: int


def work(case: Case) -> Work:
    """The counts of a case."""
    return Work(products.flop(case) + _small_products(case), _bytes(case), _tanh(case))


def _small_products(case: Case) -> int:
    s, b, train = case.shape, case.batch, case.mode == "train"
    both = 3 if train else 1  # a product and, in training, the gradients of both operands
    pool = 2 * b * s.classes * s.locations * s.channels * both
    scores = 2 * b * s.classes * s.locations * s.joint_dim * both
    rows = 2 * b * s.classes * s.out_dim * both
    folded = 2 * s.score_dim * s.joint_dim * both
    words = 2 * s.classes * s.joint_dim * s.word_dim * (2 if train else 1)
    return {
        "head": words + folded + scores + pool + rows,
        "semantic_attention": scores + pool,
        "graph_propagation": 0,
        "label_scores": rows,
    }[case.operation]


def _bytes(case: Case) -> int:
    read = {name: prod(size) * cases.stored(name, case).itemsize for name, size in input_shapes(case).items()}
    outputs = sum(prod(size) for size in cases.output_shapes(case)) * case.dtype.itemsize
    if case.mode == "infer":
        return sum(read.values()) + outputs
    written = sum(count for name, count in read.items() if name not in CONSTANTS)
    return sum(read.values()) + 2 * outputs + written


def _tanh(case: Case) -> int:
    s, b = case.shape, case.batch
    attention = b * s.classes * s.locations * s.joint_dim * (2 if case.mode == "train" else 1)
    gates, output = 3 * s.steps * b * s.classes * s.channels, b * s.classes * s.out_dim
    return {
        "head": attention + gates + output,
        "semantic_attention": attention,
        "graph_propagation": gates,
        "label_scores": output,
    }[case.operation]


def input_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors a case must read, by the names of cases.tensors; h0 only if it has no factors."""
    s, b = case.shape, case.batch
    gates = {
        "adjacency": (s.classes, s.classes),
        "weight_zr": (2 * s.channels, 3 * s.channels),
        "weight_h": (s.channels, 3 * s.channels),
    }
    output = {
        "weight_o": (s.out_dim, 2 * s.channels),
        "bias_o": (s.out_dim,),
        "weight_c": (s.classes, s.out_dim),
        "bias_c": (s.classes,),
    }
    features = (b, s.locations, s.channels)
    state = (b, s.classes, s.channels)
    start = {"attention": (b, s.classes, s.locations), "features": features} if case.factored else {"h0": state}
    head = {
        "feature_map": (b, s.channels, s.side, s.side),
        "words": (s.classes, s.word_dim),
        "weight_u": (s.joint_dim, s.channels),
        "weight_v": (s.joint_dim, s.word_dim),
        "weight_p": (s.score_dim, s.joint_dim),
        "bias_p": (s.score_dim,),
        "weight_a": (s.score_dim,),
        "bias_a": (),
    }
    joint = {
        "u": (b, s.locations, s.joint_dim),
        "v": (s.classes, s.joint_dim),
        "p": (s.joint_dim,),
        "features": features,
    }
    forms: dict[str, Callable[[], dict[str, tuple[int, ...]]]] = {
        "head": lambda: head | gates | output,
        "semantic_attention": lambda: joint,
        "graph_propagation": lambda: start | gates,
        "label_scores": lambda: {"h_T": state} | start | output,
    }
    return forms[case.operation]()
