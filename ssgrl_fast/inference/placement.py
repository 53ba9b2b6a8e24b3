"""Where an attention map lies on the photograph: back through the crop and the resize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = ["Placement", "place", "pixels"]


@dataclass(frozen=True)
class Placement:
    """Where the cells of a map [h, w] lie on a picture [H, W].

    Attributes:
        y, x: [h] and [w], increasing: centres of the cells, pixels of the picture; 0 is the middle of the first pixel.
        seen: (top, left, bottom, right): edges of what the network saw, pixels from the picture's own edges.
    """

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    seen: tuple[float, float, float, float]

    def spread(self, attention: NDArray[np.floating[Any]], height: int, width: int) -> NDArray[np.float32]:
        """A map [h, w], not negative, on the pixels of the picture [height, width]: linear between the centres of the
        cells, going on so from the outermost two to the edge of what the network saw, but not below zero; zero outside
        the edge."""
        top, left, bottom, right = self.seen
        down = _shares(self.y, height, top, bottom, slope=True)
        across = _shares(self.x, width, left, right, slope=True)
        spread: NDArray[np.float32] = (down @ attention.astype(np.float32) @ across.T).clip(0)
        return spread

    def points(self, attention: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """[n, 2] (y, x) in pixels of the picture: where the map is highest that is linear between the centres of the
        cells and constant beyond the outermost ones. These are centres of cells, or of cells outside what the network
        saw the nearest point on its edge; several where values agree within a millionth."""
        ends = (self.seen[0::2], self.seen[1::2])
        nodes: list[NDArray[np.float64]] = [
            np.unique(axis.clip(first - 0.5, end - 0.5))
            for axis, (first, end) in zip((self.y, self.x), ends, strict=True)
        ]
        down, across = (_interpolation(*each) for each in zip((self.y, self.x), nodes, strict=True))
        values = down @ attention.astype(np.float64) @ across.T
        highest = values.max()
        found = np.argwhere(values >= highest - 1e-6 * abs(highest))
        return np.stack([nodes[0][found[:, 0]], nodes[1][found[:, 1]]], axis=1)

    def weights(self, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """[h, w]: the weight of each cell in the sum over a mask's pixels [H, W] of the map of :meth:`points`: one
        that went on beyond the outermost centres as :meth:`spread` draws it would give their cells more weight."""
        top, left, bottom, right = self.seen
        height, width = mask.shape
        down, across = _shares(self.y, height, top, bottom), _shares(self.x, width, left, right)
        summed: NDArray[np.float64] = (down.T @ (mask @ across)).astype(np.float64)
        return summed


def place(grid: tuple[Tensor, Tensor], picture: tuple[int, int], *, size: int, resize: int) -> Placement:
    """The placement of a map on a picture that was resized to a square, of which the network saw the centre crop.

    Args:
        grid: (y [h], x [w]) of :meth:`ssgrl_fast.SSGRL.attention_grid` for images of ``size``.
        picture: (H, W) of the picture; any size, with the whole photograph on it.
        size, resize: of :func:`~ssgrl_fast.data.transforms.eval_transform`, pixels.
    """
    offset = (resize - size) // 2
    ratios = [side / resize for side in picture]
    y, x = ((axis.numpy() + offset + 0.5) * ratio - 0.5 for axis, ratio in zip(grid, ratios, strict=True))
    edges = [(offset * ratio, (offset + size) * ratio) for ratio in ratios]
    return Placement(y, x, (edges[0][0], edges[1][0], edges[0][1], edges[1][1]))


def pixels(image: Image, longest: int | None = None) -> NDArray[np.uint8]:
    """[H, W, 3] of an RGB image, reduced to ``longest`` pixels on its longer side if that is more."""
    if longest is not None and max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest))
    return np.asarray(image)


def _shares(
    centres: NDArray[np.float64], side: int, first: float, end: float, *, slope: bool = False
) -> NDArray[np.float32]:
    """[side, n]: the part of each cell in each pixel, zero for pixels outside first … end; beyond the outermost centres
    constant, or with ``slope`` as linear as between the two nearest (parts above 1 and below 0)."""
    middles = np.arange(side) + 0.5
    shares = _interpolation(centres, middles - 0.5)
    if slope and len(centres) > 1:
        beyond = middles - 0.5 - (middles - 0.5).clip(centres[0], centres[-1])  # pixels
        for outer, inner, part in ((0, 1, beyond.clip(max=0)), (-1, -2, beyond.clip(min=0))):
            more = part / (centres[outer] - centres[inner])
            shares[:, outer] += more
            shares[:, inner] -= more
    return (shares * ((middles > first) & (middles < end))[:, None]).astype(np.float32)


def _interpolation(centres: NDArray[np.float64], at: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """[len(at), n]: the part of each cell at each coordinate."""
    return np.stack([np.interp(at, centres, row) for row in np.eye(len(centres))], axis=1)
