"""A training transform of the user's own in the place of the paper's: torchvision's, or any function of an image."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ssgrl_fast.data.transforms import normalised_pixels

if TYPE_CHECKING:
    from PIL.Image import Image


class OwnTransform:
    """The user's transform, then the normalisation of the data set or the backbone.

    A transform that takes a second argument gets the generator of (seed, epoch, index). One that takes the image alone,
    as torchvision's, draws from PyTorch's global generator, which is seeded from that for the call: what is random
    depends on (seed, epoch, index) in both cases.

    Args:
        transform: RGB PIL image -> PIL image, uint8 [3, size, size], or float [3, size, size] in 0 .. 1, not
            normalised.
        size: side of the network's input, pixels.
        mean, std: three numbers each, for pixel values in 0 .. 1.
    """

    def __init__(self, transform: Callable[..., Any], size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.transform, self.size, self.mean, self.std = transform, size, tuple(mean), tuple(std)
        self._takes_generator = _positional(transform) > 1

    def __call__(self, image: Image, generator: torch.Generator | None) -> Tensor:
        """The transformed, normalised image, float32 [3, size, size].

        Raises:
            ValueError: the transform gave something else, or values outside 0 .. 1.
        """
        if self._takes_generator:
            made = self.transform(image, generator)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                made = self.transform(image)
        pixels = made if isinstance(made, Tensor) else F.pil_to_tensor(made)
        if pixels.shape != (3, self.size, self.size):
            raise ValueError(
                f"train_transform must give [3, {self.size}, {self.size}] (image_size), got {list(pixels.shape)}"
            )
        scaled = F.to_dtype(pixels, torch.float32, scale=True)
        if not (scaled.min() >= 0 and scaled.max() <= 1):
            raise ValueError(
                "train_transform must give pixel values in 0 .. 1 or uint8, which are normalised afterwards, got "
                f"{scaled.min():g} to {scaled.max():g}"
            )
        return normalised_pixels(scaled, self.mean, self.std)

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> OwnTransform:
        """The same transform with another mean and std, three numbers each."""
        return OwnTransform(self.transform, self.size, mean, std)

    def __repr__(self) -> str:
        return f"train_transform(size={self.size}, {' '.join(repr(self.transform).split())})"


def _positional(transform: Callable[..., Any]) -> int:
    """How many arguments a transform requires; torchvision's modules take any number."""
    try:
        parameters = inspect.signature(transform).parameters.values()
    except ValueError:  # a builtin without a signature
        return 1
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
