"""Other forms of the label graph than P(c' | c) over images: counted over objects, thresholded, re-weighted, read from
published counts.

Shapes: M images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.arrays import read_arrays
from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.labels.graph import validate

__all__ = ["object_cooccurrence", "read_counts", "reorder", "reweight", "threshold"]


def object_cooccurrence(objects: Tensor | np.ndarray, *, diagonal: float = 0.0) -> Tensor:
    """Pairs of objects a single object of the row's class: A[c, c'] = Σ_m n_mc·n_mc' / Σ_m n_mc, c ≠ c'.

    The authors' VOC graphs are counted so (D6): no probabilities, a bicycle among many people has 2.6 of them. A class
    paired with itself is not counted.

    Args:
        objects: [M, C], n_mc, how many objects of class c image m holds; those that are difficult left out.
        diagonal: what A[c, c] is set to for every class with objects.

    Returns:
        float32 [C, C]; the row of a class without objects is zero, its diagonal too.

    Raises:
        TypeError, ValueError: no whole numbers of at least 0, another shape, or a diagonal that is negative or not
            finite.
    """
    counts = torch.as_tensor(objects)
    if counts.dim() != 2 or counts.dtype.is_floating_point or counts.dtype.is_complex or counts.dtype == torch.bool:
        raise TypeError(f"graph: objects must be integers [M, C], got {counts.dtype} {list(counts.shape)}")
    if bool((counts < 0).any()):
        row, column = (counts < 0).nonzero()[0].tolist()
        raise ValueError(f"graph: objects[{row}, {column}] = {counts[row, column].item()} is negative")
    if not math.isfinite(diagonal) or diagonal < 0:
        raise ValueError(f"graph: diagonal must be finite and not negative, got {diagonal}")
    numbers = counts.to(torch.float64)
    totals = numbers.sum(0)
    adjacency = (numbers.T @ numbers) / totals.clamp(min=1)[:, None]
    adjacency.fill_diagonal_(diagonal)
    adjacency[totals == 0] = 0
    return adjacency.to(torch.float32)


def threshold(adjacency: Tensor, tau: float) -> Tensor:
    """1 where A[c, c'] ≥ τ, else 0 (ML-GCN, eq. 7): drops rare pairs, which are noise.

    Raises:
        TypeError, ValueError: no square matrix of finite values of at least 0; tau is not above 0.
    """
    validate(adjacency, name="adjacency")
    if not math.isfinite(tau) or tau <= 0:
        raise ValueError(f"graph: tau must be above 0, got {tau}")
    return (adjacency >= tau).to(adjacency.dtype)


def reweight(adjacency: Tensor, p: float) -> Tensor:
    """Rows that share p among their neighbours and keep 1 − p for themselves (ML-GCN, eq. 8).

    ``A'[c, c'] = p·A[c, c'] / Σ_{k≠c} A[c, k]`` and ``A'[c, c] = 1 − p``: a node is neither smoothed away by many
    neighbours nor alone. A class without neighbours keeps 1 − p, and nothing else in its row. ML-GCN's published code
    divides by the sums of columns instead, and adds the identity.

    Args:
        adjacency: [C, C]; its diagonal is not read.
        p: from 0 to 1.

    Raises:
        TypeError, ValueError: as :func:`threshold`; p outside 0 .. 1.
    """
    validate(adjacency, name="adjacency")
    if not 0 <= p <= 1:
        raise ValueError(f"graph: p must be from 0 to 1, got {p}")
    others = adjacency.clone().fill_diagonal_(0)
    sums = others.sum(1, keepdim=True)
    shared = p * others / torch.where(sums > 0, sums, torch.ones_like(sums))
    return shared.fill_diagonal_(1 - p)


def read_counts(path: str | PathLike[str]) -> tuple[Tensor, Tensor, list[str] | None]:
    """Counts that were published without their images.

    Args:
        path: ``.json`` with ``adj`` [C, C], ``nums`` [C] and perhaps ``classes``, ML-GCN's names for them; or ``.npz``
            with ``pairs``, ``totals`` and perhaps ``class_names``.

    Returns:
        pairs [C, C], totals [C], both as :func:`ssgrl_fast.labels.graph.conditional_probability` takes them, and the
        class
        names where the file has them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or one without pairs and totals; the message names it.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"graph: {source} is no file")
    keys = {".json": ("adj", "nums", "classes"), ".npz": ("pairs", "totals", "class_names")}.get(source.suffix)
    if keys is None:
        raise ValueError(f"graph: {source} must end in .json or .npz, got {source.suffix!r}")
    try:
        if source.suffix == ".json":
            content = parse_json(source.read_text(encoding="utf-8-sig"))
        else:
            content = read_arrays(source, (), keys)
        if not isinstance(content, dict) or not {keys[0], keys[1]} <= set(content):
            raise ValueError(f"{keys[0]} and {keys[1]} are expected")
        pairs, totals = (torch.as_tensor(np.asarray(content[key], dtype=np.float64)) for key in keys[:2])
        names = None if keys[2] not in content else [str(name) for name in content[keys[2]]]
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"graph: {source} cannot be read as counts: {error}") from error
    return pairs, totals, names


def reorder(names: Sequence[str], wanted: Sequence[str], source: str | PathLike[str]) -> list[int]:
    """Where each wanted class stands among the names.

    Raises:
        ValueError: they are not the same classes; the message names ``source`` and the classes on one side only.
    """
    if differing := sorted(set(names) ^ set(wanted)):
        raise ValueError(f"graph: {source} must hold the same classes, in any order; on one side only: {differing}")
    return [list(names).index(name) for name in wanted]
