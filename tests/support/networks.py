"""A small network of a user's own, for the tests of backbones and models."""

from __future__ import annotations

from torch import Tensor, nn


class Plain(nn.Module):
    """A user's own network: a map of 5 channels at a quarter of the size."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images))
