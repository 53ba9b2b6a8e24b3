"""How word vectors and graph were made, as a record stored with a model: `origin.json` in a run folder, the entry
``origin`` of a bundle's config.json, ``<stem>.origin.json`` beside vectors that ``ssgrl-fast words`` saved, and the
details inside a graph of ``ssgrl-fast graph``.

A file that circulates without one leaves open what decides figures: whether the graph counts images or objects, its
diagonal (D6), which table the vectors come from (D7), and the order of the classes (D8).

Every content is named by a SHA-256: of a matrix, its values as little-endian float32, row by row (of labels, as int8);
of a list of names, its JSON text in UTF-8 as ``json.dumps(names, ensure_ascii=False)`` writes it; of a file, its bytes.

Letters: M images, C classes, S the dimension of the vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.labels import words
from ssgrl_fast.labels.graph import SavedGraph
from ssgrl_fast.labels.matrix import Labels, check_labels, split_labels

FORMAT = "ssgrl_fast.origin"
UNSTATED = "not stated"

__all__ = [
    "card_rows",
    "counted_graph",
    "file_record",
    "images_record",
    "matrix_sha256",
    "names_sha256",
    "of_bundle",
    "read_graph",
    "read_words",
    "record",
]


def matrix_sha256(values: Tensor | np.ndarray) -> str:
    """SHA-256 of a matrix's values as little-endian float32, row by row; of an integer matrix as int8."""
    tensor = torch.as_tensor(values).detach().cpu()
    kind = "<f4" if tensor.dtype.is_floating_point else "i1"
    array = tensor.to(torch.float32 if kind == "<f4" else torch.int8).numpy()
    return hashlib.sha256(np.ascontiguousarray(array, dtype=kind).tobytes()).hexdigest()


def names_sha256(names: Sequence[str]) -> str:
    """SHA-256 of names in their order, as JSON text."""
    return hashlib.sha256(json.dumps(list(names), ensure_ascii=False).encode()).hexdigest()


def file_record(path: str | PathLike[str]) -> dict[str, Any]:
    """A file by its path as given, its bytes and their SHA-256.

    Raises:
        FileNotFoundError: no such file.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": str(path), "bytes": Path(path).stat().st_size, "sha256": digest}


def images_record(source: str, labels: Labels, ids: Sequence[str] | None) -> dict[str, Any]:
    """Which images a graph was counted on.

    Args:
        source: in words: the folder or file, and the split.
        labels: [M, C].
        ids: M names in the order of the rows; None where the labels came without.
    """
    codes = check_labels("origin", "labels", labels)
    return {
        "source": source,
        "count": len(codes),
        "ids_sha256": UNSTATED if ids is None else names_sha256(ids),
        "labels_sha256": matrix_sha256(codes),
    }


def counted_graph(
    adjacency: Tensor,
    labels: Labels,
    class_names: Sequence[str],
    images: Mapping[str, Any],
    *,
    diagonal: float,
    difficult: str | None,
) -> dict[str, Any]:
    """The record of a graph that :func:`ssgrl_fast.labels.graph.cooccurrence` counted.

    Args:
        adjacency: [C, C], what came out.
        labels: [M, C], what was counted.
        class_names: C names.
        images: of :func:`images_record`.
        diagonal, difficult: the arguments of ``cooccurrence``.
    """
    sets = split_labels("origin", "labels", labels, difficult)
    return {
        "how": "counted: A[c, c'] = N_cc' / N_c over images",
        "level": "image",
        "diagonal": diagonal,
        "threshold": None,
        "reweight": None,
        "difficult": sets.rule,
        "images": dict(images),
        "images_of_class": dict(zip(class_names, sets.present.sum(0).tolist(), strict=True)),
        "sha256": matrix_sha256(adjacency),
    }


def read_graph(saved: SavedGraph, adjacency: Tensor) -> dict[str, Any]:
    """The record of a graph that came from a file, with what the file says about how it was made.

    Args:
        saved: of :func:`ssgrl_fast.labels.graph.read`.
        adjacency: [C, C], in the order of the model's classes.
    """
    bare = "a bare matrix, rows by place" if saved.class_names is None else "no details in the file"
    return {
        "how": "read from a file",
        "file": dict(saved.file),
        "order": "rows by place" if saved.class_names is None else "rows by name",
        "made": dict(saved.details) or f"{UNSTATED}: {bare}",
        "sha256": matrix_sha256(adjacency),
    }


def read_words(source: str | PathLike[str], read: words.WordVectors) -> dict[str, Any]:
    """The record of word vectors.

    Args:
        source: as :func:`ssgrl_fast.labels.words.load` took it: a package's name or a file.
        read: the result of :func:`ssgrl_fast.labels.words.lookup`.

    Returns:
        Where they come from, of which words each class's vector is the mean, in the order of the rows, and what
        ``<stem>.origin.json`` beside an .npy says, if it is of that file.
    """
    made: dict[str, Any] = {
        "source": read.source,
        "dimension": read.vectors.shape[1],
        "mean_of": {name: list(parts) for name, parts in zip(read.class_names, read.used, strict=True)},
        "sha256": matrix_sha256(read.vectors),
    }
    if isinstance(source, str) and source in words.PACKAGES:
        distribution = words.PACKAGES[source][0]
        made["package"] = {"name": distribution, "version": _version(distribution)}
        return made
    made["file"] = file_record(source)
    if Path(source).suffix == ".npy":
        made["made"] = _beside(Path(source), made["file"]["sha256"])
    return made


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # it lies on the path without having been installed
        return UNSTATED


def _beside(path: Path, digest: str) -> Any:
    """What the record beside an .npy says, or why nothing is known."""
    place = words.origin_path(path)
    if not place.is_file():
        return f"{UNSTATED}: no {place.name} beside it"
    try:
        content = parse_json(place.read_text(encoding="utf-8"))
        fits = content["file_sha256"] == digest
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{UNSTATED}: {place.name} cannot be read: {error!r}"
    return content["words"] if fits else f"{UNSTATED}: {place.name} is of another file than {path.name} is now"


def record(class_names: Sequence[str], made_of_words: Any, graph: Any) -> dict[str, Any]:
    """The whole record: the classes in their order, and the records of words and graph."""
    return {
        "format": FORMAT,
        "class_names": list(class_names),
        "class_names_sha256": names_sha256(class_names),
        "words": made_of_words,
        "graph": graph,
    }


def of_bundle(
    known: Mapping[str, Any] | None, class_names: Sequence[str], vectors: Tensor, adjacency: Tensor
) -> dict[str, Any]:
    """The record of what is about to be saved: the one that is known, where it still is of these contents.

    A matrix that was changed since, or whose origin is unknown, is recorded by its SHA-256 alone. A matrix that was
    cast to a shorter type keeps its record, with a note.

    Args:
        known: the model's record, or None.
        class_names, vectors, adjacency: what the model holds, C names, [C, S] and [C, C].
    """
    parts = {}
    for name, matrix in (("words", vectors), ("graph", adjacency)):
        made, digest = (known or {}).get(name), matrix_sha256(matrix)
        if isinstance(made, Mapping) and made.get("sha256") == digest:
            parts[name] = dict(made)
        elif isinstance(made, Mapping) and matrix.dtype.itemsize < 4:
            parts[name] = {**made, "stored_as": f"{str(matrix.dtype).removeprefix('torch.')}, SHA-256 {digest}"}
        else:
            what = UNSTATED if made is None else f"{UNSTATED}: changed since it was read"
            parts[name] = {"how": what, "sha256": digest}
    return record(class_names, parts["words"], parts["graph"])


def card_rows(origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A record as rows of a model card's table."""
    rows = [("class order, SHA-256", origin["class_names_sha256"][:16])]
    for name, text in (("words", _words_text), ("graph", _graph_text)):
        if isinstance(made := origin[name], Mapping):
            rows += [(name, text(made)), (f"{name}, SHA-256", made["sha256"][:16])]
    return rows


def _words_text(made: Mapping[str, Any]) -> str:
    if "mean_of" not in made:
        return str(made["how"])
    means = sum(len(parts) > 1 for parts in made["mean_of"].values())
    return f"{made['source']}, one vector per class in the order below, {means} of them means of several words"


def _graph_text(made: Mapping[str, Any]) -> str:
    if "file" in made:
        details = made["made"]
        known = details if isinstance(details, str) else ", ".join(f"{name} {value}" for name, value in details.items())
        return f"{made['file']['path']} ({made['order']}): {known}"
    if "images" not in made:
        return str(made["how"])
    images = made["images"]
    return (
        f"{made['how']}, diagonal {made['diagonal']:g}, difficult {made['difficult']}, "
        f"{images['count']} images: {images['source']} (the list's SHA-256 {str(images['ids_sha256'])[:16]})"
    )
