"""A spot on a photograph is found on the photograph, through resize, crop, network and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from planted_spot import random_backbone

from ssgrl_fast.data.transforms import eval_transform
from ssgrl_fast.inference.placement import Placement, pixels, place


@pytest.mark.parametrize(("height", "width"), [(200, 330), (64, 64), (97, 50)])
def test_a_spot_on_a_photograph_is_found_there(height: int, width: int) -> None:
    backbone, size, resize = random_backbone("small-cnn"), 64, 80
    grid = backbone.grid(size, size)
    placement = place((grid.y.centres(), grid.x.centres()), (height, width), size=size, resize=resize)
    transform = eval_transform(size, resize=resize, mean=backbone.mean, std=backbone.std)
    rng, rows, columns = np.random.default_rng(0), np.arange(height), np.arange(width)
    photograph = rng.integers(90, 120, (height, width, 3)).astype(float)
    errors = []
    for turn in range(16):  # over two cells of each axis
        y, x = height * (0.45 + 0.2 * (turn + 0.5) / 16), width * (0.3 + 0.2 * (turn * 5 % 16 + 0.5) / 16)
        spread = (rows[:, None] - y) ** 2 / (height / 40) ** 2 + (columns - x) ** 2 / (width / 40) ** 2
        spot = 130 * np.exp(-spread / 2)[..., None]
        images = [Image.fromarray((photograph + add).astype(np.uint8)) for add in (0, spot)]
        with torch.no_grad():
            maps = [backbone(transform(image)[None]) for image in images]
        change = (maps[1] - maps[0])[0].square().sum(0).numpy()
        shown = placement.spread(change, height, width).astype(float)
        found = (shown.sum(1) @ rows, shown.sum(0) @ columns) / shown.sum()
        errors.append((found - np.array([y, x])) / (8 / resize * np.array([height, width])))
    assert np.abs(np.mean(errors, 0)).max() <= 0.15


def test_a_map_lies_between_the_centres_and_nowhere_the_network_did_not_look() -> None:
    placement = Placement(np.array([-1.0, 7.0]), np.array([2.0, 4.0]), (2, 0, 8, 5))
    spread = placement.spread(np.array([[0.0, 0.0], [8.0, 8.0]]), 10, 6)
    assert spread[:, 0].tolist() == pytest.approx([0, 0, 3, 4, 5, 6, 7, 8, 0, 0])
    assert spread[4].tolist() == pytest.approx([5, 5, 5, 5, 5, 0])


def test_a_ramp_stays_a_ramp_up_to_the_edge_and_no_map_falls_below_zero() -> None:
    centres = 27.0 + 32 * np.arange(12)  # 27 pixels from one edge, 5 from the other
    placement = Placement(centres, centres[:1], (0, 0, 384, 40))
    for slope, start in ((2.0, 100.0), (-2.0, 900.0), (0.0, 7.0)):
        ramp = placement.spread((start + slope * centres)[:, None], 384, 40)
        assert ramp == pytest.approx(np.tile((start + slope * np.arange(384))[:, None], 40), rel=1e-5)
    steep = placement.spread((2.0 * (centres - 27))[:, None], 384, 40)[:, 3]
    assert steep == pytest.approx(2.0 * (np.arange(384) - 27).clip(0), abs=1e-3)
    # a cell's weight in the measures of localisation is that of its own pixels, whatever is drawn
    assert placement.weights(np.ones((384, 40), dtype=bool)).sum() == pytest.approx(384 * 40)


def test_spots_near_the_edge_are_drawn_nearer_to_what_they_are() -> None:
    cells, at, drawn, constant = np.arange(12) + 0.5, (np.arange(384) + 0.5) / 32, 0.0, 0.0
    placement = Placement(32 * cells - 0.5, 32 * cells - 0.5, (0, 0, 384, 384))
    level = np.clip(at, cells[0], cells[-1])
    band = np.pad(np.zeros((352, 352), dtype=bool), 16, constant_values=True)  # beyond the outermost centres
    for y, x in np.random.default_rng(0).uniform(0, 12, (60, 2)):
        spot, truth, kept = (  # two cells wide: at the centres of the cells, everywhere, and constant in the band
            np.exp(-((axis[:, None] - y) ** 2 + (axis - x) ** 2) / 8) for axis in (cells, at, level)
        )
        drawn += np.square(placement.spread(spot, 384, 384) - truth)[band].sum()
        constant += np.square(kept - truth)[band].sum()
    assert drawn < 0.36 * constant  # the error is less than 0.6 of that


def test_pictures_are_reduced_and_never_enlarged(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 10), (1, 2, 3))
    assert [pixels(image, longest).shape for longest in (None, 20, 100)] == [(10, 40, 3), (5, 20, 3), (10, 40, 3)]
    assert image.size == (40, 10)
