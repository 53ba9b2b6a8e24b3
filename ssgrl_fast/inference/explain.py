"""Explanation of a label: what each neighbour in the graph adds to the score of a class, and what becomes of the score
when cells of the map are removed in the order of the attention.

Shapes: C classes, D channels, H·W = L locations, N neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast import functional
from ssgrl_fast._utils.pytorch import without_autocast
from ssgrl_fast.modules import GraphPropagation, LabelClassifier, SSGRLHead
from ssgrl_fast.reference import numerics
from ssgrl_fast.reference.graph_propagation import graph_propagation_forward

__all__ = ["NeighbourContributions", "RemovalCurves", "neighbour_contributions", "removal_curves"]


@dataclass(frozen=True)
class NeighbourContributions:
    """The contributions of the edges of one class to its logit on one image.

    Attributes:
        class_index: c, the explained class.
        logit: s_c with the whole graph.
        alone: s_c with every edge of c removed.
        neighbours: N indices of classes c' that share an edge with c, the largest contribution first.
        contributions: N differences of logits, s_c minus s_c without the edge between c and c': positive where the
            neighbour raised the class, negative where it lowered it. The network is not linear, so they need not add up
            to ``logit - alone``.
        left_out: neighbours that were not computed because of ``limit``.
    """

    class_index: int
    logit: float
    alone: float
    neighbours: tuple[int, ...]
    contributions: tuple[float, ...]
    left_out: tuple[int, ...]


@torch.no_grad()
def neighbour_contributions(
    head: SSGRLHead, features: Tensor, class_index: int, *, limit: int | None = None, batch_size: int = 16
) -> NeighbourContributions:
    """Remove each edge of a class in turn and measure the change of the class's logit.

    ``contribution[c'] = s_c(A) - s_c(A without A_cc' and A_c'c)``: both directions of the edge between c and c' are set
    to zero at every step of eq. 8-9; attention, pooled features, weights and all other edges are unchanged. A neighbour
    is a class c' other than c with A_cc' or A_c'c not zero. The reference equations are used, for several graphs at a
    time, in float32 (float64 for a float64 head), also under autocast.

    Args:
        head: with its graph (``interaction=True``).
        features: the map of one image, [D, H, W] or [1, D, H, W]; the weights' dtype and device.
        class_index: c, from 0 to C - 1.
        limit: number of neighbours to compute, those of the heaviest edges A_cc' + A_c'c; None: all.
        batch_size: graphs per batch; more is faster and takes more memory, 28·C·D numbers per graph at T = 3.

    Raises:
        TypeError, ValueError: a head without a graph; features of more than one image, another shape, dtype or device;
            a class_index out of range; limit or batch_size below 1.
    """
    name = "neighbour_contributions"
    classifier = head.classifier
    if head.graph_propagation is None or not isinstance(classifier, LabelClassifier):
        raise ValueError(f"{name}: head has no graph (interaction=False), so no neighbour adds to a score")
    if head.quantized:
        raise ValueError(f"{name}: head is quantized ({head.quantized}): pass the head that quantize() was called on")
    for option, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: {option} must be at least 1, got {value}")
    _check_class(name, class_index, head)
    features = _one_map(name, features)
    # the neighbours, the heaviest edges first
    pooled, _ = head.semantic_decoupling(features, head.words)
    exact = numerics.exact_dtype(pooled.dtype)
    adjacency = head.adjacency.to(exact)
    weight = adjacency[class_index] + adjacency[:, class_index]
    joined = (adjacency[class_index] != 0) | (adjacency[:, class_index] != 0)
    joined[class_index] = False
    heaviest = [index for index in weight.argsort(descending=True, stable=True).tolist() if joined[index]]
    kept = heaviest[:limit]
    # logits with the whole graph, without any edge of the class, and without each edge
    whole, alone, *removed = _logits_without(
        head, classifier, pooled.to(exact), class_index, [[], heaviest, *([index] for index in kept)], batch_size
    )
    ranked = sorted(((whole - logit, index) for logit, index in zip(removed, kept, strict=True)), reverse=True)
    return NeighbourContributions(
        class_index,
        whole,
        alone,
        tuple(index for _, index in ranked),
        tuple(value for value, _ in ranked),
        tuple(heaviest[len(kept) :]),
    )


@dataclass(frozen=True)
class RemovalCurves:
    """The probability of one class on one image while cells of the map are removed (the deletion and insertion curves
    of Petsiuk et al., "RISE", BMVC 2018, over cells instead of pixels).

    Attributes:
        class_index: c.
        kept: N shares of the map's cells that are left, increasing to 1.
        deletion: N probabilities; the most attended cells were removed first.
        insertion: N probabilities; the least attended cells were removed first: the most attended ones come first.
        random: N means over random orders.
    """

    class_index: int
    kept: tuple[float, ...]
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]
    random: tuple[float, ...]

    def areas(self) -> dict[str, float]:
        """The mean of each curve over ``kept`` (trapezoids), by its name."""
        at = np.array(self.kept)
        curves = {name: np.array(getattr(self, name)) for name in ("deletion", "insertion", "random")}
        return {name: float(np.trapezoid(curve, at) / (at[-1] - at[0])) for name, curve in curves.items()}


@torch.no_grad()
def removal_curves(
    head: SSGRLHead, features: Tensor, class_indices: Sequence[int], *, steps: int = 16, orders: int = 8, seed: int = 0
) -> list[RemovalCurves]:
    """Run a head on parts of the cells of a map: what is removed is left out of the attention of every class, and the
    attention over the remaining cells sums to 1 again.

    No value takes the place of a removed cell. But its neighbours have seen a part of what it saw, as their receptive
    fields overlap, so a curve falls later than if the pixels were removed.

    Args:
        head: with any decoupling; the order of the cells is that of its attention to the whole map.
        features: the map of one image, [D, H, W] or [1, D, H, W], of two cells or more; the weights' dtype and device.
        class_indices: the classes, each from 0 to C - 1.
        steps: numbers of cells to keep, at most, spread evenly from one cell to all, at least 2.
        orders: random orders, the same for all classes, at least 1.
        seed: of the random orders.

    Returns:
        The curves of each class.

    Raises:
        ValueError: features of more than one image, another shape or a single cell; an index, steps or orders out of
            range.
    """
    name = "removal_curves"
    for index in class_indices:
        _check_class(name, index, head)
    for option, value, least in (("steps", steps, 2), ("orders", orders, 1)):
        if value < least:
            raise ValueError(f"{name}: {option} must be at least {least}, got {value}")
    features = _one_map(name, features)
    cells = features.flatten(2)[0]  # [D, L]
    count = cells.shape[1]
    if count < 2:
        raise ValueError(f"{name}: features must have two cells or more, got {list(features.shape)}")
    _, attention = head(features, return_attention=True)
    draw = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([torch.randperm(count, generator=draw) for _ in range(orders)]).to(cells.device)
    falling = attention[0].flatten(1)[list(class_indices)].argsort(dim=1, descending=True, stable=True)
    sequences = torch.cat([falling.flip(1), falling, shuffled])  # each begins with the cells that are kept longest
    numbers = sorted({round(each) for each in np.linspace(1, count, steps).tolist()})
    scores = torch.stack(
        [head(cells[:, sequences[:, :number]].transpose(0, 1)[:, :, None]).double().sigmoid() for number in numbers]
    ).cpu()  # [N, sequences, C]
    kept, n = tuple(number / count for number in numbers), len(class_indices)
    return [
        RemovalCurves(
            index,
            kept,
            tuple(scores[:, place, index].tolist()),
            tuple(scores[:, n + place, index].tolist()),
            tuple(scores[:, 2 * n :, index].mean(1).tolist()),
        )
        for place, index in enumerate(class_indices)
    ]


def _check_class(name: str, index: int, head: SSGRLHead) -> None:
    if not 0 <= index < head.num_classes:
        raise ValueError(f"{name}: class_index must be from 0 to {head.num_classes - 1}, got {index}")


def _one_map(name: str, features: Tensor) -> Tensor:
    """[1, D, H, W] of the map of one image."""
    features = features[None] if features.dim() == 3 else features
    if features.dim() != 4 or len(features) != 1:
        raise ValueError(f"{name}: features must be the map of one image, [D, H, W], got {list(features.shape)}")
    return features


def _logits_without(
    head: SSGRLHead,
    classifier: LabelClassifier,
    pooled: Tensor,  # [1, C, D]
    class_index: int,
    removed: list[list[int]],
    batch_size: int,
) -> list[float]:
    """The logit of a class for several graphs, each without the edges between it and one list of classes."""
    graph = head.graph_propagation
    assert isinstance(graph, GraphPropagation)
    exact = pooled.dtype
    gates = [None if w is None else w.to(exact) for w in (graph.weight_zr, graph.bias_zr, graph.weight_h, graph.bias_h)]
    weight_zr, bias_zr, weight_h, bias_h = gates
    assert weight_zr is not None and weight_h is not None
    row = slice(class_index, class_index + 1)
    output = (classifier.weight_o, classifier.bias_o, classifier.weight_c[row], classifier.bias_c[row])
    weight_o, bias_o, weight_c, bias_c = (tensor.to(exact) for tensor in output)
    logits: list[float] = []
    with without_autocast(pooled):
        for start in range(0, len(removed), batch_size):
            part = removed[start : start + batch_size]
            graphs = head.adjacency.to(exact).repeat(len(part), 1, 1)
            for number, classes in enumerate(part):
                graphs[number, class_index, classes] = 0
                graphs[number, classes, class_index] = 0
            h0 = pooled.expand(len(part), -1, -1)
            h_T, _, _ = graph_propagation_forward(
                h0, graphs, weight_zr, bias_zr, weight_h, bias_h, graph.steps, graph.reset_gate
            )
            scores = functional.label_scores(
                h_T[:, row].contiguous(),
                h0[:, row].contiguous(),
                weight_o,
                bias_o,
                weight_c,
                bias_c,
                backend="reference",
            )
            logits += scores[:, 0].tolist()
    return logits
