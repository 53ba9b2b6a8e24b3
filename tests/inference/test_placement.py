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


def test_pictures_are_reduced_and_never_enlarged(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 10), (1, 2, 3))
    assert [pixels(image, longest).shape for longest in (None, 20, 100)] == [(10, 40, 3), (5, 20, 3), (10, 40, 3)]
    assert image.size == (40, 10)
