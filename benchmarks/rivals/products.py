"""Rival (e), the products alone: the large matrix products of the operations, and nothing else.

They are those of identities 1–6 (docs/kernels.md) at their cheaper form, on random data, through ``torch.mm(out=)`` and
``torch.bmm(out=)`` into outputs allocated beforehand. In units of 2·B·C·D² FLOP, forward: 9 a step, 2 for f_o; where
identity 4 pays (L < C·D/(C+D)) the products with h0 (8 of the first step's 9 and one of f_o's 2) are taken on the L
rows of F and expanded by a instead: 9·L/C and 9·L/D. Beside them the dense aggregation and F·U. A training step adds
for each product the gradient of its data and of its weight, the latter in one product a weight over all steps
(identity 6); the aggregation gets only the first, as the adjacency takes no gradient.
X·V, the pooling a·F and the class rows are small and not included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness import cases, gpu
from benchmarks.harness.cases import Case


@dataclass(frozen=True)
class Product:
    """``batch`` products [m, k] x [k, n], done ``times`` times a step.

    ``layout`` names the operands' storage: "nt" for x·Wᵀ, "nn" for dy·W, "tn" for dyᵀ·x, all row-major.
    """

    label: str
    m: int
    n: int
    k: int
    layout: str = "nt"
    batch: int = 1
    times: int = 1

    @property
    def flop(self) -> int:
        return 2 * self.m * self.n * self.k * self.batch * self.times

    def gradients(self) -> list[Product]:
        """The backward of x·Wᵀ: dy·W as often as the product itself, and one dyᵀ·x over the rows of all its times."""
        return [
            Product(f"d data of {self.label}", self.m, self.k, self.n, "nn", times=self.times),
            Product(f"d weight of {self.label}", self.n, self.k, self.m * self.times, "tn"),
        ]


def products(case: Case) -> list[Product]:
    """The list for a case; empty for semantic_attention, whose products (p collapsed, pool) are not on the list."""
    parts: dict[str, Callable[[Case], list[Product]]] = {
        "head": lambda c: [*_projection(c), *_propagation(c), *_output(c)],
        "semantic_attention": lambda c: [],
        "graph_propagation": _propagation,
        "label_scores": _output,
    }
    return parts[case.operation](case)


def flop(case: Case) -> int:
    """FLOP of the products alone."""
    return sum(product.flop for product in products(case))


def runner(case: Case) -> Callable[[], None]:
    """The timed function: the products one after another on a CPU, one captured graph of them on a GPU."""
    run = ProductRunner(case)
    if case.device != "cuda":
        return run
    with cases.multiplying(case.tf32):
        return gpu.graphed(run)


class ProductRunner:
    """Runs the products of a case on random operands that it owns; products of equal shapes share theirs."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self._generator = torch.Generator(case.device).manual_seed(seed)
        self._case = case
        self._buffers: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self._calls: list[tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]] = []
        for product in products(case):
            self._calls += [self._call(product)] * product.times

    def __call__(self) -> None:
        with torch.inference_mode():
            for multiply, left, right, out in self._calls:
                multiply(left, right, out=out)

    def _call(self, product: Product) -> tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]:
        m, n, k, stack = product.m, product.n, product.k, (product.batch,) if product.batch > 1 else ()
        left = (
            self._buffer("left", (*stack, k, m)).mT if product.layout == "tn" else self._buffer("left", (*stack, m, k))
        )
        right = (
            self._buffer("right", (*stack, n, k)).mT
            if product.layout == "nt"
            else self._buffer("right", (*stack, k, n))
        )
        return (torch.bmm if stack else torch.mm), left, right, self._buffer("out", (*stack, m, n))

    def _buffer(self, role: str, size: tuple[int, ...]) -> Tensor:
        key = (role, size)
        if key not in self._buffers:
            room = torch.empty(size, dtype=self._case.dtype, device=self._case.device)
            self._buffers[key] = room.normal_(generator=self._generator)
        return self._buffers[key]


def _projection(case: Case) -> list[Product]:
    """u = F·U."""
    s = case.shape
    u = Product("F·U", case.batch * s.locations, s.joint_dim, s.channels)
    return [u, *u.gradients()] if case.mode == "train" else [u]


def _propagation(case: Case) -> list[Product]:
    s, rows, d = case.shape, case.batch * case.shape.classes, case.shape.channels
    full = s.steps - 1 if case.factored else s.steps
    aggregate = Product("[A; Aᵀ]·h", 2 * s.classes, case.batch * d, s.classes, "nn", times=full)
    gates = Product("gates z, r", rows, 2 * d, 3 * d, times=full)
    candidate = Product("candidate", rows, d, 3 * d, times=full)
    forward = [p for p in (aggregate, gates, candidate) if p.times]
    backward = [p for step in (gates, candidate) if step.times for p in step.gradients()]
    if full:
        backward.append(Product("[Aᵀ, A]·d", s.classes, case.batch * d, 2 * s.classes, "nn", times=full))
    if case.factored:
        first, first_backward = _first_step(case)
        forward, backward = first + forward, backward + first_backward
    return forward + backward if case.mode == "train" else forward


def _first_step(case: Case) -> tuple[list[Product], list[Product]]:
    """Step 1 by identity 4: [I; A; Aᵀ]·a, F on eight of the nine blocks, the expansions, and U·(r⊙h0) as it is."""
    s, d = case.shape, case.shape.channels
    aggregate = Product("[A; Aᵀ]·a", 2 * s.classes, case.batch * s.locations, s.classes, "nn")
    rows = Product("F·W of step 1", case.batch * s.locations, 8 * d, d)
    gates = Product("expansion, gates", s.classes, 2 * d, 3 * s.locations, "nn", case.batch)
    candidate = Product("expansion, candidate", s.classes, d, 2 * s.locations, "nn", case.batch)
    reset = Product("U·(r⊙h0)", case.batch * s.classes, d, d)
    backward = [p for product in (rows, reset) for p in product.gradients()]
    backward += _expansion_gradients(gates) + _expansion_gradients(candidate)
    backward.append(Product("[Aᵀ, A]·d of a", s.classes, case.batch * s.locations, 2 * s.classes, "nn"))
    return [aggregate, rows, gates, candidate, reset], backward


def _output(case: Case) -> list[Product]:
    """f_o over [h_T, h0], its second half on the L rows of F where identity 4 pays."""
    s, rows = case.shape, case.batch * case.shape.classes
    if not case.factored:
        out = Product("f_o", rows, s.out_dim, 2 * s.channels)
        return [out, *out.gradients()] if case.mode == "train" else [out]
    half = Product("f_o, h_T half", rows, s.out_dim, s.channels)
    low = Product("f_o, F·W_b", case.batch * s.locations, s.out_dim, s.channels)
    expansion = Product("expansion, f_o", s.classes, s.out_dim, s.locations, "nn", case.batch)
    forward = [half, low, expansion]
    backward = [*half.gradients(), *low.gradients(), *_expansion_gradients(expansion)]
    return forward + backward if case.mode == "train" else forward


def _expansion_gradients(product: Product) -> list[Product]:
    """Gradients of a [C, q·L] and of the expanded rows [q·L, n] of one batched product [C, q·L] x [q·L, n]."""
    m, n, k = product.m, product.n, product.k
    return [
        Product(f"d a of {product.label}", m, k, n, "nt", product.batch),
        Product(f"d rows of {product.label}", k, n, m, "tn", product.batch),
    ]
