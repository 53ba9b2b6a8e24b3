"""Canvases with several handwritten digits: a built-in multi-label data set that needs no download.

The digits are scikit-learn's (``load_digits``, 1,797 scans of 8×8 pixels, UCI optdigits), in the order in which their
writers were scanned. The first 1,200 are used for the training canvases, the next 150 for validation and the last 447
for the test, so no digit is in two splits and the test digits come from other writers.

The classes of a canvas are drawn from a fixed pairwise log-linear model over the 637 label sets of one to five
classes,

    P(y) ∝ exp( Σ_i FIELD[i] y_i  +  Σ_{i<j} COUPLING[i, j] y_i y_j ).

Five digits are common (0 2 4 6 7), five rare (1 3 5 8 9). Each rare digit occurs mostly with certain other digits, so
P(common | rare) is high while P(rare | common) is low: the conditional probabilities, which are the paper's adjacency,
are far from symmetric. Digits that look alike in 8×8 scans (3/8/9/5, 1/8, 1/4, 4/9, 2/3) occur with different digits
and seldom with each other. ``conditional_probabilities()`` gives the exact graph.

A canvas of 64×64 pixels is a tinted background with pixel noise. Its digits (one per class, for a quarter of the
classes a second one) vary in size, aspect ratio and contrast, are brighter or darker than the background, and are
placed near the cells of a 4×4 grid. Up to six distractors, digits with exchanged halves, fill free cells. With
``occlusion`` = q the left half of a rare digit is hidden with probability q: what is left of 1, 3, 5, 8 and 9 looks
much alike, and the common digits, which are always whole, tell which is likely. Canvas i of a split is a function of
(canvas_seed, split, i) and q; its labels and places do not depend on q. On another machine or PyTorch version a pixel
value may be rounded differently.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssgrl_fast._utils.checks import check_choice, need
from ssgrl_fast.data.base import MultiLabelDataset, Transform

if TYPE_CHECKING:
    from PIL.Image import Image

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
SPLITS = {"train": (0, 1200), "val": (1200, 1350), "test": (1350, 1797)}
COUNTS = {"train": 6000, "val": 1000, "test": 2000}
MAX_LABELS = 5
FIELD = (-0.6, -2.2, -0.8, -1.8, -0.6, -2.0, -0.7, -0.7, -1.9, -1.8)
COUPLING = {
    **dict.fromkeys([(0, 1), (1, 6), (2, 5), (5, 7), (0, 3), (3, 4), (6, 8), (2, 8), (4, 9), (7, 9)], 1.8),
    **dict.fromkeys([(3, 8), (3, 9), (3, 5), (5, 8), (5, 9), (8, 9), (1, 8), (1, 4), (2, 3), (4, 6), (0, 7)], -1.5),
}

RARE = (1, 3, 5, 8, 9)

_GRID = 4  # cells per side
_CELLS = _GRID * _GRID
_DISTRACTORS = 6  # maximum; with ten digits they fill the grid
_REPEATED = 0.25  # share of the classes with a second digit
_HEIGHT = (0.22, 0.3)  # of a digit, relative to the side of the canvas: 14 to 19 of 64 pixels
_CONTRAST = (0.3, 0.6)  # of a digit against the background
_NOISE = (0.02, 0.07)  # standard deviation of the pixels
_CHUNK = 64
_SLOT_DRAWS = 10
_DRAWS = 1 + _CELLS + len(CLASS_NAMES) + 1 + 5 + _CELLS * _SLOT_DRAWS


class DigitCanvases(MultiLabelDataset):
    """Digit canvases of one split, generated in memory as uint8 when the data set is created (one or two seconds for
    the training split).

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; no digit scan is used in two of them.
        count: number of canvases; None: 6000, 1000 or 2000.
        size: side of the canvas in pixels; digits scale with it.
        canvas_seed: seed of the canvases; independent of ``seed``, so that several training runs can use the same
            canvases.
        occlusion: probability that the left half of a rare digit is hidden.
        transform: None: only normalisation with ``mean`` and ``std``.
        mean, std: of each channel, for pixels scaled to 0 .. 1; used if ``transform`` is None.
        seed: seed of the random transform.

    Samples are {"image": float32 [3, size, size], "target": int8 [10] in {1, -1}, "index": int}.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: an unknown split, count < 1, size < 16, a negative seed, occlusion not in 0 .. 1, or mean and std
            are not three numbers each with positive std.
    """

    def __init__(
        self,
        split: Literal["train", "val", "test"] = "train",
        count: int | None = None,
        *,
        size: int = 64,
        canvas_seed: int = 0,
        occlusion: float = 0.0,
        transform: Transform | None = None,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        seed: int = 0,
    ) -> None:
        check_choice("DigitCanvases", "split", split, tuple(SPLITS))
        count = COUNTS[split] if count is None else count
        if count < 1 or size < 16 or canvas_seed < 0 or not 0 <= occlusion <= 1:
            raise ValueError(
                "DigitCanvases: count >= 1, size >= 16, canvas_seed >= 0 and 0 <= occlusion <= 1 are needed, "
                f"got {count}, {size}, {canvas_seed} and {occlusion}"
            )
        self.pixels, present = draw_canvases(
            split, count, size, canvas_seed, occlusion
        )  # [M, 3, H, W] uint8, [M, C] bool
        labels = torch.from_numpy(np.where(present, 1, -1).astype(np.int8))
        ids = [f"digits-{split}-{canvas_seed}-{index:05d}" for index in range(count)]
        super().__init__(CLASS_NAMES, labels, ids, transform=transform, seed=seed)
        self.mean, self.std = _normalisation(mean, std)

    def load_image(self, index: int) -> Image:
        """The canvas as an RGB PIL image."""
        image: Image = need("PIL.Image", "train", "DigitCanvases.load_image").fromarray(
            self.pixels[index].permute(1, 2, 0).numpy()
        )
        return image

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        if self.transform is not None:
            return super().with_normalisation(mean, std)
        other = self._copy()
        other.mean, other.std = _normalisation(mean, std)
        return other

    def load_tensor(self, index: int) -> Tensor:
        if self.transform is not None:
            return super().load_tensor(index)
        return (self.pixels[index].float() / 255 - self.mean) / self.std

    def default_transform(self) -> Transform:
        """What :meth:`load_tensor` does to a canvas, as a transform of its image."""
        from ssgrl_fast.data.transforms import eval_transform  # which needs Pillow

        side = self.pixels.shape[-1]
        mean, std = (tuple(values.flatten().tolist()) for values in (self.mean, self.std))
        return eval_transform(side, resize=side, mean=mean, std=std)

    def _select(self, indices: list[int]) -> None:
        if indices != list(range(len(self.pixels))):
            self.pixels = self.pixels[indices]


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Both as float32 [3, 1, 1]."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"DigitCanvases: mean and std must be 3 numbers each, std positive, got {list(mean)} and {list(std)}"
        )
    shaped = [torch.tensor(list(values), dtype=torch.float32).view(3, 1, 1) for values in (mean, std)]
    return shaped[0], shaped[1]


def label_sets() -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The label sets of the log-linear model, bool [N, 10], and their probabilities, float64 [N]."""
    sets = np.array([y for y in itertools.product([False, True], repeat=len(CLASS_NAMES)) if 1 <= sum(y) <= MAX_LABELS])
    energy = sets @ np.array(FIELD)
    for (i, j), coupling in COUPLING.items():
        energy += coupling * (sets[:, i] & sets[:, j])
    weight = np.exp(energy)
    return sets, weight / weight.sum()


def conditional_probabilities() -> NDArray[np.float64]:
    """The exact conditional probabilities of the labels: row c, column c' is P(c' | c), float64 [10, 10]."""
    sets, probability = label_sets()
    joint = sets.T @ (sets * probability[:, None])
    return joint / joint.diagonal()[:, None]


def draw_canvases(
    split: str, count: int, size: int, canvas_seed: int, occlusion: float = 0.0
) -> tuple[Tensor, NDArray[np.bool_]]:
    """Generate the first ``count`` canvases of a split: uint8 [M, 3, size, size] and their labels, bool [M, 10]."""
    scans, classes = _scans(split)
    sets, probability = label_sets()
    cumulative = probability.cumsum()
    pixels = torch.empty(count, 3, size, size, dtype=torch.uint8)
    present = np.empty((count, len(CLASS_NAMES)), dtype=bool)
    for start in range(0, count, _CHUNK):  # whole chunks only, so that a canvas does not depend on count
        # random numbers of each canvas, from its own generator
        draws, hidden = np.empty((_CHUNK, _DRAWS)), np.empty((_CHUNK, _CELLS), dtype=bool)
        noise = np.empty((_CHUNK, 3, size, size), dtype=np.float32)
        for row in range(_CHUNK):
            random = np.random.default_rng([canvas_seed, list(SPLITS).index(split), start + row])
            random.random(out=draws[row])
            random.standard_normal(out=noise[row], dtype=np.float32)
            hidden[row] = random.random(_CELLS) < occlusion
        # label sets by inverse sampling, then the pixels
        chosen = sets[np.searchsorted(cumulative, draws[:, 0] * cumulative[-1], side="right").clip(max=len(sets) - 1)]
        stop = min(start + _CHUNK, count)
        present[start:stop] = chosen[: stop - start]
        pixels[start:stop] = _paint(chosen, draws, noise, hidden, scans, classes)[: stop - start]
    return pixels, present


def _scans(split: str) -> tuple[Tensor, NDArray[np.int64]]:
    """The digit scans of a split, float32 [n, 8, 8] in 0 .. 1, and their classes, int64 [n]."""
    digits = need("sklearn.datasets", "train", "ssgrl_fast.data.digits").load_digits()
    start, stop = SPLITS[split]
    return torch.from_numpy(digits.images[start:stop] / 16.0).float(), digits.target[start:stop].astype(np.int64)


def _paint(
    chosen: NDArray[np.bool_],
    draws: NDArray[np.float64],
    noise: NDArray[np.float32],
    hidden: NDArray[np.bool_],
    scans: Tensor,
    classes: NDArray[np.int64],
) -> Tensor:
    """One chunk of canvases, uint8 [chunk, 3, size, size], from labels [chunk, 10], uniform draws [chunk, _DRAWS],
    normal noise, and which slots show half of a rare digit, [chunk, _CELLS]."""
    # digits and distractors at their places
    size = noise.shape[-1]
    _, cell_keys, repeat_keys, distractor_key, ground, slot_keys = np.split(
        draws, np.cumsum([1, _CELLS, len(CLASS_NAMES), 1, 5]), axis=1
    )
    slots = slot_keys.reshape(len(draws), _CELLS, _SLOT_DRAWS)
    patches = _patches(chosen, repeat_keys, distractor_key[:, 0], slots[..., 0], hidden, scans, classes)
    cells = cell_keys.argsort(axis=1)  # a random order of the 4x4 cells; slot k takes cell cells[:, k]
    masks = _placed(patches, cells, slots[..., 1:5], size)
    # background, digits in lighter or darker ink, noise
    level = 0.3 + 0.4 * ground[:, :1]
    colour = torch.from_numpy((level + 0.15 * (ground[:, 1:4] - 0.5)).astype(np.float32))  # [chunk, 3]
    canvas = colour[:, :, None, None].expand(-1, -1, size, size)
    sign = np.where(slots[..., 5:6] < 0.5, -1.0, 1.0)
    contrast = sign * _between(_CONTRAST, slots[..., 6:7]) * (0.75 + 0.5 * slots[..., 7:10])
    ink = (colour[:, None] + torch.from_numpy(contrast.astype(np.float32)))[..., None, None]  # [chunk, slots, 3, 1, 1]
    for slot in range(_CELLS):
        canvas = torch.lerp(canvas, ink[:, slot], masks[:, slot, None])
    deviation = _between(_NOISE, ground[:, 4]).astype(np.float32)
    canvas = torch.addcmul(canvas, torch.from_numpy(noise), torch.from_numpy(deviation)[:, None, None, None])
    return canvas.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _patches(
    chosen: NDArray[np.bool_],
    repeat_keys: NDArray[np.float64],
    distractor_keys: NDArray[np.float64],
    scan_keys: NDArray[np.float64],
    hidden: NDArray[np.bool_],
    scans: Tensor,
    classes: NDArray[np.int64],
) -> Tensor:
    """The 8x8 patch of each slot, [chunk, slots, 8, 8]: the digits, then their repetitions, then distractors, then
    zeros."""
    patches = torch.zeros(*scan_keys.shape, 8, 8)
    by_class = [np.flatnonzero(classes == digit) for digit in range(len(CLASS_NAMES))]
    for row, keys in enumerate(scan_keys):
        digits = np.flatnonzero(chosen[row])
        digits = np.concatenate([digits, digits[repeat_keys[row, digits] < _REPEATED]])[:_CELLS]
        for slot, digit in enumerate(digits):
            patches[row, slot] = scans[by_class[digit][int(keys[slot] * len(by_class[digit]))]]
            if hidden[row, slot] and digit in RARE:
                patches[row, slot, :, :4] = 0
        distractors = int(distractor_keys[row] * (_DISTRACTORS + 1))
        for slot in range(len(digits), min(len(digits) + distractors, _CELLS)):
            patches[row, slot] = scans[int(keys[slot] * len(scans))].roll(4, 1).T  # halves exchanged, then transposed
    return patches


def _placed(patches: Tensor, cells: NDArray[np.int64], place: NDArray[np.float64], size: int) -> Tensor:
    """Each 8x8 patch scaled (bilinear) and moved to its cell: opacity [chunk, slots, size, size]. A zero patch stays
    zero.

    ``place`` has uniform draws [chunk, slots, 4]: height, width relative to height, and the shift from the centre of
    the cell in x and y.
    """
    height = _between(_HEIGHT, place[..., 0])
    width = height * (0.8 + 0.3 * place[..., 1])
    weights = []
    for extent, cell, shift in ((height, cells // _GRID, place[..., 3]), (width, cells % _GRID, place[..., 2])):
        centre = ((cell + 0.5 + 0.4 * (shift - 0.5)) / _GRID).clip(extent / 2, 1 - extent / 2)
        position = (np.arange(size) + 0.5) / size
        row = (position - centre[..., None]) / extent[..., None] * 8 + 3.5  # coordinate in the patch, 0 .. 7 inside
        weights.append(torch.from_numpy((1 - np.abs(row[..., None] - np.arange(8))).clip(0).astype(np.float32)))
    return weights[0] @ patches @ weights[1].transpose(-1, -2)


def _between(ends: tuple[float, float], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Uniform draws in 0 .. 1, mapped to the interval between the two ends."""
    return ends[0] + (ends[1] - ends[0]) * draws
