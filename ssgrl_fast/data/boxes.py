"""Boxes of the objects on a photograph, as annotations in the formats of Pascal VOC and COCO give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["ImageBoxes", "ObjectBox", "as_edges"]

Edges = tuple[float, float, float, float]
# (top, left, bottom, right) in pixels from the photograph's own edges: pixel i lies from i to i + 1


class ObjectBox(NamedTuple):
    """One object: its class, the label that it gives the class (1 present, 0 difficult or a crowd that is treated as
    such), and the edges of its box (top, left, bottom, right), None if the annotation has no box of it. Edges are in
    pixels from those of the photograph: pixel i lies from i to i + 1."""

    name: str
    code: int
    edges: Edges | None


class ImageBoxes(NamedTuple):
    """The objects of an image, and the size (height, width) in pixels that its annotation states, or None."""

    size: tuple[int, int] | None
    objects: list[ObjectBox]


def as_edges(values: Sequence[Any]) -> Edges | None:
    """Four finite numbers, or texts of them, as edges; None for anything else."""
    try:
        top, left, bottom, right = (float(value) for value in values)
    except (TypeError, ValueError):
        return None
    return (top, left, bottom, right) if all(map(math.isfinite, (top, left, bottom, right))) else None
