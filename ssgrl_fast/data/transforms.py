"""The paper's image transforms (sections 3.5 and 4.2.2; D22), by Pillow.

The results are bit for bit those of torchvision's v2 functions on images of Pillow. torchvision itself, whose import
takes more than a second, is not needed.

Training: resize to a square (the aspect ratio is not kept), crop a square at a random place whose side is drawn from
five values, and resize it to the input size. Evaluation: resize to the same square and crop the centre. Resizing uses
Pillow's bilinear filter, as in the published code. Neither the paper nor the published code flips images; flipping is
off by default.

| input size | resized to | crop sides |
|---|---|---|
| 576 (3.5) | 640 | 640 576 512 384 320 |
| 448 (4.2.2) | 512 | 512 448 384 320 256 |
| any other s | s · 640/576, rounded | the sides for 576, scaled by the same ratio |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.checks import LARGEST_IMAGE, check_choice, need

need("PIL", "train", "ssgrl_fast.data.transforms")
from PIL.Image import Image, Resampling, Transpose  # noqa: E402

VIEWS = ("single", "ten-crop")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PAPER_SCALES = {576: (640, (640, 576, 512, 384, 320)), 448: (512, (512, 448, 384, 320, 256))}


class TrainTransform:
    """Resize, random square crop, resize, optional flip, normalise. Create it with ``train_transform``.

    ``transform(image, generator)``: RGB PIL image of any size -> float32 [3, size, size]. Exactly four numbers are
    drawn from the generator (crop side, top, left, flip) with any options. ``generator=None`` uses PyTorch's global
    generator.
    """

    def __init__(
        self,
        size: int,
        resize: int,
        crops: tuple[int, ...],
        flip: bool,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.size, self.resize, self.crops, self.flip, self.mean, self.std = size, resize, crops, flip, mean, std

    def __call__(self, image: Image, generator: torch.Generator | None) -> Tensor:
        draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        side = self.crops[int(draws[0] * len(self.crops))]
        top, left = (int(draw * (self.resize - side + 1)) for draw in draws[1:3])
        image = _resized(image, self.resize)
        image = _resized(_crop(image, top, left, side), self.size)
        if self.flip and draws[3] < 0.5:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        return normalised(image, self.mean, self.std)

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> TrainTransform:
        """The same transform with another mean and std; raises ValueError as train_transform does."""
        return TrainTransform(self.size, self.resize, self.crops, self.flip, *_normalisation(mean, std))

    def __repr__(self) -> str:
        return f"train_transform(size={self.size}, resize={self.resize}, crops={list(self.crops)}, flip={self.flip})"


class EvalTransform:
    """Resize, centre crop, normalise. Create it with ``eval_transform``.

    ``transform(image, generator=None)``: RGB PIL image of any size -> float32 [3, size, size]; nothing is random.
    """

    def __init__(self, size: int, resize: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.size, self.resize, self.mean, self.std = size, resize, mean, std

    def __call__(self, image: Image, generator: torch.Generator | None = None) -> Tensor:
        offset = (self.resize - self.size) // 2
        image = _crop(_resized(image, self.resize), offset, offset, self.size)
        return normalised(image, self.mean, self.std)

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> EvalTransform:
        """The same transform with another mean and std; raises ValueError as eval_transform does."""
        return EvalTransform(self.size, self.resize, *_normalisation(mean, std))

    def __repr__(self) -> str:
        return f"eval_transform(size={self.size}, resize={self.resize})"


class ViewTransform(EvalTransform):
    """Several views of one image at one scale (section 4.2.2). Create it with ``view_transform``.

    ``transform(image, generator=None)``: RGB PIL image of any size -> float32 [V, 3, size, size]: the centre crop
    (V = 1), or ten crops: top left, top right, bottom left, bottom right, centre, then their mirror images (V = 10).
    """

    def __init__(
        self, size: int, resize: int, mean: tuple[float, ...], std: tuple[float, ...], views: str = "single"
    ) -> None:
        super().__init__(size, resize, mean, std)
        self.views = views

    @property
    def count(self) -> int:
        """The number of views V."""
        return 1 if self.views == "single" else 10

    def __call__(self, image: Image, generator: torch.Generator | None = None) -> Tensor:
        image, far, middle = _resized(image, self.resize), self.resize - self.size, (self.resize - self.size) // 2
        corners = [] if self.views == "single" else [(0, 0), (0, far), (far, 0), (far, far)]
        crops = [_crop(image, top, left, self.size) for top, left in (*corners, (middle, middle))]
        mirrored = [] if self.views == "single" else [crop.transpose(Transpose.FLIP_LEFT_RIGHT) for crop in crops]
        return torch.stack([normalised(crop, self.mean, self.std) for crop in (*crops, *mirrored)])

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> ViewTransform:
        """The same transform with another mean and std; raises ValueError as eval_transform does."""
        return ViewTransform(self.size, self.resize, *_normalisation(mean, std), self.views)

    def __repr__(self) -> str:
        return f"view_transform(size={self.size}, resize={self.resize}, views={self.views!r})"


def train_transform(
    size: int = 576,
    *,
    resize: int | None = None,
    crops: Sequence[int] | None = None,
    flip: bool = False,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> TrainTransform:
    """The paper's training transform.

    Args:
        size: side of the network's input in pixels.
        resize: side of the square that the whole image is resized to; None: from the table above.
        crops: sides of the crop to draw from, with equal probability, at most ``resize``; None: from the table above.
        flip: mirror an image with probability 1/2. Not in the paper.
        mean, std: of each channel, for pixels scaled to 0 .. 1.

    Raises:
        ValueError: sizes below 1, a crop larger than ``resize``, mean or std not three numbers, std not positive.
    """
    full = _resize_side(size, resize)
    if crops is None:
        table_resize, table_crops = PAPER_SCALES.get(size, PAPER_SCALES[576])
        crops = [max(1, round(full * side / table_resize)) for side in table_crops]
    if not crops or min(crops) < 1 or max(crops) > full:
        raise ValueError(f"crops must be sides from 1 to resize = {full}, got {list(crops)}")
    return TrainTransform(size, full, tuple(crops), flip, *_normalisation(mean, std))


def eval_transform(
    size: int = 576,
    *,
    resize: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> EvalTransform:
    """The paper's single-view test transform.

    Args:
        size: side of the network's input in pixels.
        resize: side of the square that the whole image is resized to, at least ``size``; None: from the table above;
            equal to ``size``: no crop.
        mean, std: of each channel, for pixels scaled to 0 .. 1.

    Raises:
        ValueError: sizes below 1, ``resize`` below ``size``, mean or std not three numbers, std not positive.
    """
    full = _resize_side(size, resize)
    if full < size:
        raise ValueError(f"resize must be at least size = {size} for the centre crop, got {full}")
    return EvalTransform(size, full, *_normalisation(mean, std))


def view_transform(
    size: int = 576,
    *,
    resize: int | None = None,
    views: str = "single",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> ViewTransform:
    """The paper's test transforms: one view (section 3.5) or ten (section 4.2.2) of every image.

    Args:
        size, resize, mean, std: as for ``eval_transform``.
        views: ``"single"`` or ``"ten-crop"``.

    Raises:
        ValueError: see ``eval_transform``; an unknown value of ``views``; ten crops with ``resize`` equal to ``size``.
    """
    check_choice("view_transform", "views", views, VIEWS)
    plain = eval_transform(size, resize=resize, mean=mean, std=std)
    if views == "ten-crop" and plain.resize == size:
        raise ValueError(
            f"view_transform: ten-crop needs resize above size, got {size} for both: all crops are the same"
        )
    return ViewTransform(plain.size, plain.resize, plain.mean, plain.std, views)


def normalised(image: Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """RGB PIL image -> (pixels / 255 - mean) / std, float32 [3, H, W]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return normalised_pixels(pixels.to(torch.float32).mul_(1 / 255), mean, std)


def normalised_pixels(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(pixels - mean) / std of float32 [3, H, W] in 0 .. 1."""
    shift, scale = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))
    return pixels.sub(shift).div_(scale)


def _crop(image: Image, top: int, left: int, side: int) -> Image:
    return image.crop((left, top, left + side, top + side))


def _resized(image: Image, side: int) -> Image:
    return image if image.size == (side, side) else image.resize((side, side), Resampling.BILINEAR)


def _resize_side(size: int, resize: int | None) -> int:
    if not all(1 <= side <= LARGEST_IMAGE for side in (size, size if resize is None else resize)):
        raise ValueError(f"size and resize must be from 1 to {LARGEST_IMAGE} pixels, got {size} and {resize}")
    if resize is not None:
        return resize
    return PAPER_SCALES[size][0] if size in PAPER_SCALES else round(size * 640 / 576)


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(f"{name} must have 3 numbers, one per channel, got {list(values)}")
    if min(std) <= 0:
        raise ValueError(f"std must be positive, got {list(std)}")
    return tuple(float(value) for value in mean), tuple(float(value) for value in std)
