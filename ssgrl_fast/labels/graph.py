"""The co-occurrence graph of section 3.3: a_cc' = P(c' present | c present), counted on training labels.

Row c belongs to the class that is given, so the matrix is not symmetric: A[c, c'] = N_cc' / N_c, with N_c the number
of images that hold c and N_cc' of those that hold both. Images are counted, not objects. The published files depart
from this (D6): COCO's is exactly it with a zero diagonal, VOC's count object pairs and go up to 2.6, VG-500's is
symmetric with a unit diagonal. :func:`load` takes them all; :func:`cooccurrence` makes the paper's.

Letters: M images, C classes.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.arrays import read_array, read_arrays
from ssgrl_fast._utils.files import replacing
from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.labels.matrix import Labels, check_class_names, split_labels

FORMAT = "ssgrl_fast.graph"
SUFFIXES = (".safetensors", ".npz", ".npy")


class PairsNeverKnown(UserWarning):
    """Of some pairs of classes no image that holds the one says anything of the other: their P(c' | c) is set to 0."""


class ClassesWithoutPositives(UserWarning):
    """Some classes have no image that holds them: P(· | c) is undefined for them, and their rows are zero."""


@dataclass(frozen=True)
class SavedGraph:
    """A graph as it lies in a file.

    Attributes:
        adjacency: float32 [C, C], row c: P(c' | c).
        class_names: the names its rows and columns stand for, in order; None where the file has none (.npy).
        details: what was saved beside it, text by name (how it was counted).
        file: the file it was read from: its path as given, its number of bytes and their SHA-256.
    """

    adjacency: Tensor
    class_names: list[str] | None
    details: dict[str, str] = field(default_factory=dict)
    file: Mapping[str, Any] = field(default_factory=dict)

    def ordered(self, class_names: Sequence[str]) -> Tensor:
        """The adjacency for these classes, in their order: float32 [C, C], row c: P(c' | c).

        Rows and columns of a file with names are put in the order of ``class_names`` (COCO circulates in two orders,
        D8). A file without names (.npy) is taken as it stands and must have the right size.

        Args:
            class_names: C names.

        Raises:
            ValueError: the graph is over other classes; the message names the file and the classes.
        """
        names, source = check_class_names("graph.load", class_names), str(self.file.get("path", "the saved graph"))
        if self.class_names is None:
            validate(self.adjacency, len(names), name="adjacency", source=source)
            return self.adjacency
        missing = [name for name in names if name not in set(self.class_names)]
        extra = [name for name in self.class_names if name not in set(names)]
        if missing or extra:
            parts = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
            parts += [f"has {', '.join(map(repr, extra))} besides"] if extra else []
            raise ValueError(
                f"graph: {source} is over other classes than the {len(names)} asked for: it {' and '.join(parts)}"
            )
        order = torch.tensor([self.class_names.index(name) for name in names])
        return self.adjacency[order][:, order].contiguous()


def counts(labels: Labels, *, difficult: str | None = None) -> tuple[Tensor, Tensor]:
    """Count, over images, the classes and the pairs of classes.

    Args:
        labels: [M, C]; bool, {0, 1}, or {1, 0, -1} with 0 for only difficult objects (:mod:`ssgrl_fast.labels.matrix`).
        difficult: the rule for difficult entries. A count of presences knows two cases: ``"positive"`` counts
            them, ``"negative"``, ``"ignore"`` and None do not.

    Returns:
        pairs, int64 [C, C]: images that hold both classes; the diagonal holds the class totals.
        totals, int64 [C]: images that hold the class.

    Raises:
        TypeError, ValueError: labels of another shape or with other values, or an unknown rule.
    """
    present = split_labels("graph.counts", "labels", labels, difficult).present
    return _images_of_both(present, present), present.sum(0)


def counts_where_known(labels: Labels, *, difficult: str | None = None) -> Tensor:
    """The denominators of P(c' | c) where labels are unknown in part: images that hold c and of which it is known
    whether they hold c'.

    Args:
        labels, difficult: as for :func:`counts`; a difficult entry is known.

    Returns:
        int64 [C, C]; without unknown entries every column is N_c. The diagonal holds the class totals.

    Raises:
        TypeError, ValueError: as :func:`counts`.
    """
    sets = split_labels("graph.counts_where_known", "labels", labels, difficult)
    return _images_of_both(sets.present, ~sets.unknown)


def _images_of_both(one: Tensor, other: Tensor) -> Tensor:
    """How many images are in class c of the one and class c' of the other, both bool [M, C] -> int64 [C, C]."""
    # Sums of 0 and 1 are exact in float32 up to 2^24 images, and its product is the fast one.
    exact = torch.float32 if one.shape[0] < 2**24 else torch.float64
    return (one.to(exact).T @ other.to(exact)).to(torch.int64)


def conditional_probability(
    pairs: Tensor | np.ndarray, totals: Tensor | np.ndarray, *, diagonal: float = 0.0
) -> Tensor:
    """P(c' | c) = N_cc' / N_c from counts (section 3.3), for label statistics that come without the images.

    Args:
        pairs: [C, C], N_cc'; what its diagonal holds is not read.
        totals: [C], N_c; or [C, C], the images that hold c and say whether they hold c', where labels are unknown in
            part.
        diagonal: what A[c, c] is set to for every class with positives.

    Returns:
        float64 [C, C]; the row of a class with N_c = 0 is zero, its diagonal too, and so is every entry whose own
            total is 0.

    Raises:
        ValueError: shapes that do not fit, a negative count, a pair count above its class's total, or a diagonal that
            is negative or not finite.
    """
    _check_diagonal(diagonal)
    both = torch.as_tensor(pairs).to(torch.float64)
    single = torch.as_tensor(totals).to(torch.float64)
    if both.dim() != 2 or both.shape[0] != both.shape[1] or single.shape not in (both.shape, both.shape[:1]):
        raise ValueError(f"graph: pairs must be [C, C] and totals [C], got {list(both.shape)} and {list(single.shape)}")
    validate(both, name="pairs")
    known = single if single.dim() == 2 else single[:, None].expand_as(both)
    own = torch.eye(len(single), dtype=torch.bool, device=both.device)
    wrong = ((both > known) & ~own) | (known < 0)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"graph: pairs[{row}, {column}] = {both[row, column].item():g} does not fit "
            f"totals[{row}] = {known[row, column].item():g}"
        )
    probability = (both / known.masked_fill(known == 0, 1.0)).masked_fill(known == 0, 0.0)
    probability.fill_diagonal_(diagonal)
    probability[known.diagonal() == 0] = 0.0
    return probability


def cooccurrence(
    labels: Labels, *, diagonal: float = 0.0, difficult: str | None = None, class_names: Sequence[str] | None = None
) -> Tensor:
    """The adjacency of section 3.3 from a label matrix: A[c, c'] = P(c' | c) = N_cc' / N_c.

    Args:
        labels: [M, C]; bool, {0, 1} present/absent, or {1, 0, -1} with -1 absent and 0 difficult. 0 means difficult
            only when a -1 occurs or ``difficult=`` says so (:mod:`ssgrl_fast.labels.matrix`). -2 is unknown: P(c' | c)
            is then counted over the images in which both are known.
        diagonal: A[c, c]: 0.0 as in the published COCO graph, 1.0 as in those that count a class with itself (D6).
        difficult: ``"positive"`` counts difficult entries as present; ``"ignore"``, ``"negative"`` and None do not.
        class_names: used by the warning; without them it names class numbers.

    Returns:
        float32 [C, C], on the labels' device. Row c is given c. The whole row of a class without positives is zero, its
        diagonal too, and :class:`ClassesWithoutPositives` is warned of; :func:`classes_without_positives` lists them.
        A pair that no image tells anything about is 0 with the warning :class:`PairsNeverKnown`.

    Raises:
        TypeError, ValueError: labels of another shape or with other values, an unknown rule, a diagonal that is
            negative or not finite, or names that are not one for each class.
    """
    pairs, totals = counts(labels, difficult=difficult)
    names = None if class_names is None else check_class_names("graph.cooccurrence", class_names, len(totals))
    known = counts_where_known(labels, difficult=difficult)
    adjacency = conditional_probability(pairs, known, diagonal=diagonal).to(torch.float32)
    unseen = int(((known == 0) & (totals > 0)[:, None]).sum())
    if unseen:
        warnings.warn(
            f"graph.cooccurrence: for {unseen} pairs of classes no image that holds the one says whether it holds the "
            "other (unknown labels): their P(c' | c) is set to 0",
            PairsNeverKnown,
            stacklevel=2,
        )
    empty = (totals == 0).nonzero().flatten().tolist()
    if empty:
        listed = ", ".join(str(c) if names is None else repr(names[c]) for c in empty)
        warnings.warn(
            f"graph.cooccurrence: {len(empty)} of {len(totals)} classes have no image that holds them, "
            f"their rows are zero: {listed}",
            ClassesWithoutPositives,
            stacklevel=2,
        )
    return adjacency


def classes_without_positives(labels: Labels, *, difficult: str | None = None) -> list[int]:
    """The numbers of the classes that no image holds, under the difficult rule; arguments as for
    :func:`cooccurrence`."""
    present = split_labels("graph.classes_without_positives", "labels", labels, difficult).present
    return (~present.any(0)).nonzero().flatten().tolist()


def validate(
    adjacency: Tensor, num_classes: int | None = None, *, name: str = "adjacency", source: str = "graph"
) -> None:
    """Refuse what cannot be an adjacency. Values above 1 pass: the published VOC graphs hold them (D6).

    Raises:
        TypeError: no tensor of real numbers.
        ValueError: not square, not ``num_classes`` wide, not finite or negative somewhere.
    """
    if not isinstance(adjacency, Tensor) or adjacency.dtype.is_complex or adjacency.dtype == torch.bool:
        what = str(adjacency.dtype) if isinstance(adjacency, Tensor) else type(adjacency).__name__
        raise TypeError(f"{source}: {name} must be a tensor of real numbers [C, C], got {what}")
    if adjacency.dim() != 2 or adjacency.shape[0] != adjacency.shape[1] or not len(adjacency):
        raise ValueError(f"{source}: {name} must be square [C, C], got {list(adjacency.shape)}")
    if num_classes is not None and len(adjacency) != num_classes:
        raise ValueError(f"{source}: {name} is for {len(adjacency)} classes, expected {num_classes}")
    for wrong, what in ((~torch.isfinite(adjacency), "not finite"), (adjacency < 0, "negative")):
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"{source}: {name} is {what} in {int(wrong.sum())} entries, "
                f"first [{row}, {column}] = {adjacency[row, column].item()}"
            )


def save(
    path: str | PathLike[str], adjacency: Tensor, class_names: Sequence[str], details: Mapping[str, str] | None = None
) -> Path:
    """Save a graph with the names of its classes, as float32; an earlier file stays until the new one is whole.

    Args:
        path: ``.safetensors`` (names in the header) or ``.npz`` (arrays ``adjacency``, ``class_names``, ``details``).
        adjacency: [C, C], row c: P(c' | c).
        class_names: C names, in the order of the rows.
        details: text to keep beside it, such as how it was counted.

    Returns:
        The path.

    Raises:
        ValueError: another suffix, an adjacency :func:`validate` refuses, or names that are not one for each class.
        OSError: the disc refused.
    """
    target = Path(path)
    validate(adjacency, name="adjacency", source="graph.save")
    names = check_class_names("graph.save", class_names, len(adjacency))
    if target.suffix not in (".safetensors", ".npz"):
        raise ValueError(f"graph.save: {target} must end in .safetensors or .npz, got {target.suffix!r}")
    matrix = adjacency.detach().to("cpu", torch.float32).contiguous()
    notes = {str(key): str(value) for key, value in (details or {}).items()}
    with replacing(target) as part:
        if target.suffix == ".safetensors":
            from safetensors.torch import save as to_bytes

            header = {"format": FORMAT, "class_names": json.dumps(names), "details": json.dumps(notes)}
            part.write_bytes(to_bytes({"adjacency": matrix}, metadata=header))
        else:
            with part.open("wb") as file:
                listed, kept = np.array(names), np.array(json.dumps(notes))
                np.savez(file, adjacency=matrix.numpy(), class_names=listed, details=kept)
    return target


def read(path: str | PathLike[str]) -> SavedGraph:
    """Read a graph and its class names, in the file's own order.

    Args:
        path: what :func:`save` wrote, or a bare ``.npy`` matrix such as the published ``prob_train.npy`` (no names).

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a truncated one, or a matrix :func:`validate` refuses; the message names the
            file.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"graph: {source} is no file")
    if source.suffix not in SUFFIXES:
        raise ValueError(f"graph: {source} must end in {', '.join(SUFFIXES)}, got {source.suffix!r}")
    reader = {".safetensors": _read_safetensors, ".npz": _read_npz, ".npy": _read_npy}[source.suffix]
    content = source.read_bytes()  # opened once: the matrix and the checksum come from the same bytes
    graph = reader(source, content)
    validate(graph.adjacency, name="adjacency", source=str(source))
    if graph.class_names is not None:
        check_class_names(str(source), graph.class_names, len(graph.adjacency))
    file = {"path": str(path), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return SavedGraph(graph.adjacency.to(torch.float32), graph.class_names, graph.details, file)


def load(path: str | PathLike[str], class_names: Sequence[str]) -> Tensor:
    """Load a graph for these classes, in their order: ``read(path).ordered(class_names)``.

    :func:`read` gives besides what the file says about how the graph was made.

    Args:
        path: as for :func:`read`.
        class_names: C names.

    Returns:
        float32 [C, C], row c: P(c' | c).

    Raises:
        FileNotFoundError: no such file.
        ValueError: as :func:`read` and :meth:`SavedGraph.ordered`.
    """
    return read(path).ordered(class_names)


def _check_diagonal(diagonal: float) -> None:
    if isinstance(diagonal, bool) or not isinstance(diagonal, (int, float)):
        raise TypeError(f"graph: diagonal must be a number, got {type(diagonal).__name__}")
    if not math.isfinite(diagonal) or diagonal < 0:
        raise ValueError(f"graph: diagonal must be finite and not negative, got {diagonal}")


def _read_safetensors(path: Path, content: bytes) -> SavedGraph:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        tensors = from_bytes(content)
        size = int.from_bytes(content[:8], "little")  # of the header, JSON text that follows
        header = parse_json(content[8 : 8 + size]).get("__metadata__", {})
        if header.get("format") != FORMAT or "adjacency" not in tensors:
            raise ValueError(f"it is no graph saved by ssgrl_fast.graph.save (its format is {header.get('format')!r})")
        names, details = parse_json(header["class_names"]), parse_json(header.get("details", "{}"))
        return SavedGraph(tensors["adjacency"], names, details)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"graph: {path} cannot be read: {error}") from error


def _read_npz(path: Path, content: bytes) -> SavedGraph:
    try:
        arrays = read_arrays(content, ("adjacency", "class_names"), ("details",))
        details = parse_json(str(arrays["details"])) if "details" in arrays else {}
        names = [str(name) for name in arrays["class_names"]]
        return SavedGraph(torch.from_numpy(arrays["adjacency"]), names, details)
    except (ValueError, TypeError) as error:
        raise ValueError(f"graph: {path} cannot be read: {error}") from error


def _read_npy(path: Path, content: bytes) -> SavedGraph:
    try:
        matrix = read_array(content)
    except ValueError as error:
        raise ValueError(f"graph: {path} cannot be read: {error}") from error
    if matrix.dtype.kind not in "fiu":
        raise ValueError(f"graph: {path} holds {matrix.dtype}, expected real numbers")
    return SavedGraph(torch.from_numpy(matrix.astype(np.float32)), None)
