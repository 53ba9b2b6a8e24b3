"""Where in an image the cells of a backbone's map look.

Cell i of a map of h cells does not see the middle of the i-th of h equal parts of the image: a convolution of stride 2
with symmetric padding centres its cell i on pixel 2i, and "same" padding shifts the cells by an amount that depends on
the image's size. The centre of a receptive field is exact where strides and padding alone settle it (torchvision's
ResNets, small-cnn, patches that do not overlap). For other networks one offset per axis is measured, because trained
weights decide it as much as the padding does: spots are planted at known places, and the change of the map tells which
cells see them.

Coordinates are pixels of the network's input; 0 is the middle of the first pixel.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssgrl_fast._utils.checks import LARGEST_IMAGE

__all__ = ["Axis", "Grid", "exact_grid", "measured_grid", "read_grids", "structured_images"]

_LONGER = 448  # pixels: a multiple of the usual strides and patches
# Places on one background err alike, so that many backgrounds with two places each err least for their cost: by about
# 0.03 of a cell (EfficientNet-Lite0 at 224 and 256 pixels).
_BACKGROUNDS, _PLACES, _APART = 16, 8, 4
_SHOWN = 200  # characters of a value in a message
_log = logging.getLogger(__name__)


class Axis(NamedTuple):
    """The centres of the cells along one axis: ``first + step·i`` for i below ``cells``, pixels."""

    first: float
    step: float
    cells: int

    def centres(self) -> Tensor:
        """[cells] float64."""
        return self.first + self.step * torch.arange(self.cells, dtype=torch.float64)


class Grid(NamedTuple):
    """The centres of a map's cells: rows and columns."""

    y: Axis
    x: Axis


def exact_grid(height: int, width: int, steps: tuple[int, int], firsts: tuple[float, float], *, pool: bool) -> Grid:
    """The grid of a network whose strides and padding alone settle it.

    Args:
        height, width: of the image, pixels.
        steps: pixels from one cell to the next, (y, x).
        firsts: centres of the first row and column.
        pool: whether the 2x2 average pool follows.
    """
    rows, columns = (
        Axis(first, step, math.ceil(side / step))
        for side, step, first in zip((height, width), steps, firsts, strict=True)
    )
    if pool:
        rows, columns = (Axis(axis.first + axis.step / 2, 2 * axis.step, axis.cells // 2) for axis in (rows, columns))
    return Grid(rows, columns)


@torch.no_grad()
def measured_grid(backbone: nn.Module, height: int, width: int) -> Grid:
    """The grid of any network, measured on random images with structure at every scale.

    The step is how much longer an image is that has one cell more, or that of equal parts where the network takes
    images of one size only. For the first centre, bright and dark spots are planted at places that are spread evenly
    over two cells about the middle. The centre of mass of the squared change of the map is the cell that sees the spot;
    the mean difference between place and cell is the offset, for a square image the mean of both axes, rounded to 0.01
    pixel.

    Args:
        backbone: images [B, 3, H, W] to a map [B, D, h, w]; a copy in evaluation mode is run.
        height, width: of the images, pixels.

    Raises:
        ValueError: the backbone refuses images of this size, or no spot changes its map, or its map is not finite.
    """
    network = deepcopy(backbone).eval()
    like = next(network.parameters(), torch.empty(0))
    if like.dtype not in (torch.float32, torch.float64):
        like = next(network.float().parameters())
    with torch.autocast(like.device.type, enabled=False):
        images = structured_images(_BACKGROUNDS, height, width).to(like.device, like.dtype).split(1)
        counts = network(images[0]).shape[2:]
        steps = _steps(network, images[0], counts)
        places = torch.stack([_places(*each) for each in zip((height, width), steps, (1, 3), strict=True)])
        spots = _spots(places, height, width).to(images[0])
        offsets = []
        for number, image in enumerate(images):
            mine, plain = slice(number % _APART, None, _APART), network(image)
            for spot, place in zip(spots[mine], places.T[mine], strict=True):
                change = (network(image + spot) - plain)[0].double().square().sum(0).cpu()
                if (whole := change.sum()) == 0:  # a spot between the pixels that a network samples
                    continue
                cell = [change.sum(1 - axis) @ torch.arange(counts[axis]).double() / whole for axis in (0, 1)]
                offsets.append(place - torch.tensor(steps).double() * torch.stack(cell))
    found = torch.stack(offsets).mean(0) if offsets else torch.full((2,), math.nan)
    if not found.isfinite().all():
        raise ValueError(f"attention_grid: the map of images of {height}x{width} is not finite, or no spot changes it")
    firsts = found if height != width else found.mean().expand(2)
    rows, columns = (Axis(round(f, 2), s, c) for f, s, c in zip(firsts.tolist(), steps, counts, strict=True))
    return Grid(rows, columns)


def read_grids(entry: object) -> dict[tuple[int, int], Grid]:
    """Measured grids by (height, width), of the entry ``attention_grid`` of a bundle's config.json:
    ``{"384x384": [[first, step, cells], [first, step, cells]]}``, y before x.

    Raises:
        ValueError: anything else.
    """
    grids = {}
    for size, axes in entry.items() if isinstance(entry, dict) else [("", entry)]:
        sides = re.fullmatch(r"([1-9]\d{,4})x([1-9]\d{,4})", size)
        if sides is None or not isinstance(axes, list) or len(axes) != 2 or not all(map(_is_axis, axes)):
            raise ValueError(
                "entry 'attention_grid' must hold {\"HEIGHTxWIDTH\": [y, x]} with [first, step, cells] each, the last"
                f" two above 0 and no number above {LARGEST_IMAGE}, got {repr(entry)[:_SHOWN]}"
            )
        grids[int(sides[1]), int(sides[2])] = Grid(Axis(*axes[0]), Axis(*axes[1]))
    return grids


def _is_axis(axis: object) -> bool:
    if not isinstance(axis, list) or len(axis) != 3 or any(type(value) not in (int, float) for value in axis):
        return False
    positive = type(axis[2]) is int and 0 < axis[1] <= LARGEST_IMAGE and 0 < axis[2] <= LARGEST_IMAGE
    return positive and abs(axis[0]) <= LARGEST_IMAGE


def structured_images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """[count, 3, H, W] float32 with variance 1: noise whose amplitude grows with its wavelength, as in photographs."""
    draw, images = torch.Generator().manual_seed(seed), torch.zeros(count, 3, height, width)
    for side in (1, 2, 4, 8, 16, 32, 64):
        noise = torch.randn(count, 3, -(-height // side) + 1, -(-width // side) + 1, generator=draw)
        large = noise if side == 1 else F.interpolate(noise, scale_factor=side, mode="bilinear")
        images += math.sqrt(side) * large[:, :, :height, :width]
    return images / images.std()


def _steps(network: Callable[[Tensor], Tensor], image: Tensor, counts: Sequence[int]) -> list[float]:
    """Pixels from one cell to the next along each axis; equal parts where no longer image can be run."""
    try:
        longer = network(F.pad(image, (0, _LONGER, 0, _LONGER))).shape[2:]
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        _log.info("attention grid: the map is taken to divide the image into equal parts: %s", error)
        return _equal(image, counts)
    more = [after - before for before, after in zip(counts, longer, strict=True)]
    return [_LONGER / m if m > 0 else part for m, part in zip(more, _equal(image, counts), strict=True)]


def _equal(image: Tensor, counts: Sequence[int]) -> list[float]:
    return [side / count for side, count in zip(image.shape[2:], counts, strict=True)]


def _places(side: int, step: float, stride: int) -> Tensor:
    """[places] float64: coordinates spread evenly over two cells about the middle, in an order of their own."""
    turns = torch.arange(_PLACES, dtype=torch.float64) * stride % _PLACES
    return (side - 1) / 2 + 2 * step * ((turns + 0.5) / _PLACES - 0.5)


def _spots(places: Tensor, height: int, width: int) -> Tensor:
    """[places, 1, H, W]: a spot about four pixels across at each place, the first half bright, the others dark."""
    down, across = (
        (torch.arange(side) - place[:, None]).square() for side, place in zip((height, width), places, strict=True)
    )
    shape = torch.exp(-(down[:, :, None] + across[:, None]) / 8)[:, None]
    return 3 * torch.cat([shape[:_APART], -shape[_APART:]])
