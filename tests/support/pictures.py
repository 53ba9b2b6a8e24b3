"""A data set of plain pictures for tests of order, epochs and workers; light to import in workers that are spawned."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssgrl_fast.data.base import MultiLabelDataset


def noise(image: Image.Image, generator: torch.Generator | None) -> Tensor:
    """A stand-in for an augmentation: the picture's first pixel and three random numbers, [3, 1, 2]."""
    pixel = torch.tensor(image.getpixel((0, 0))) / 255
    return torch.stack([pixel, torch.rand(3, generator=generator)], -1)[:, None]


class Colours(MultiLabelDataset):
    """Ten plain pictures, one shade each."""

    def __init__(self, count: int = 10, **options: Any) -> None:
        labels = torch.from_numpy(np.where(np.arange(count * 2).reshape(count, 2) % 3 == 0, 1, -1).astype(np.int8))
        super().__init__(["even", "odd"], labels, [f"c{i}" for i in range(count)], **({"transform": noise} | options))
        self.shades = list(range(count))

    def load_image(self, index: int) -> Image.Image:
        return Image.new("RGB", (4, 4), (self.shades[index], 0, 0))

    def _select(self, indices: list[int]) -> None:
        self.shades = [self.shades[index] for index in indices]
