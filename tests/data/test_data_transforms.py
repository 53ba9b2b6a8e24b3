"""ssgrl_fast.data.transforms against sections 3.5 and 4.2.2 of the paper (D22)."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ssgrl_fast.data.base import sample_generator
from ssgrl_fast.data.transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform, normalised, train_transform


def _picture(height: int = 90, width: int = 120) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "resize", "crops"),
    [(576, 640, (640, 576, 512, 384, 320)), (448, 512, (512, 448, 384, 320, 256)), (72, 80, (80, 72, 64, 48, 40))],
)
def test_sizes_of_the_paper(size: int, resize: int, crops: tuple[int, ...]) -> None:
    transform = train_transform(size)
    assert (transform.resize, transform.crops, transform.flip) == (resize, crops, False)
    assert eval_transform(size).resize == resize


def test_eval_is_resize_and_centre_crop() -> None:
    image = _picture()
    resized = np.asarray(image.resize((80, 80), Image.Resampling.BILINEAR)).astype(np.float64)
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    expected = (resized[4:76, 4:76] / 255 - mean) / std
    result = eval_transform(72)(image)
    assert result.shape == (3, 72, 72) and result.dtype == torch.float32
    np.testing.assert_allclose(result.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_bit_for_bit_torchvisions() -> None:
    image = _picture()
    composed = v2.Compose(
        [
            v2.Resize((80, 80)),
            v2.CenterCrop(72),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    assert torch.equal(eval_transform(72)(image), composed(image))


def test_train_is_resize_crop_resize_with_the_generators_draws() -> None:
    image, resize = _picture(), 80
    transform = train_transform(72, flip=True)
    seen = set()
    for seed in range(40):
        draws = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
        side = (80, 72, 64, 48, 40)[int(5 * draws[0])]
        top, left = int(draws[1] * (resize - side + 1)), int(draws[2] * (resize - side + 1))
        square = image.resize((80, 80), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
        expected = square.resize((72, 72), Image.Resampling.BILINEAR)
        mirrored = draws[3] < 0.5
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else expected
        result = transform(image, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(result, normalised(expected, IMAGENET_MEAN, IMAGENET_STD))
        seen.add((side, mirrored))
    assert len(seen) == 10  # five sides, mirrored and not


def test_crop_sides_and_places_are_uniform() -> None:
    """A picture whose red is its row and whose green is its column shows where each crop was taken."""
    rows, columns = np.mgrid[0:40, 0:40].astype(np.uint8)
    image = Image.fromarray(np.stack([rows, columns, rows * 0], -1))
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    transform = train_transform(20, resize=40, crops=(20,), **plain)
    corners = [_shades(transform(image, sample_generator(0, 0, index))[:2, 0, 0]) for index in range(2000)]
    for axis in (0, 1):
        counts = Counter(corner[axis] for corner in corners)
        assert set(counts) == set(range(21)) and max(counts.values()) < 2 * min(counts.values())
    transform = train_transform(20, resize=40, crops=(40, 30, 20), **plain)
    sides = Counter()
    for index in range(900):
        first, last = (_shades(transform(image, sample_generator(0, 1, index))[:2, place, 0])[0] for place in (0, -1))
        sides[min((40, 30, 20), key=lambda side: abs(side - (last - first) * 20 / 19))] += 1
    assert all(240 < sides[side] < 360 for side in (40, 30, 20))


def _shades(pixel: torch.Tensor) -> list[int]:
    return (pixel * 255).round().int().tolist()


def test_randomness_comes_from_the_generator_alone() -> None:
    image, transform = _picture(), train_transform(36)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = transform(image, sample_generator(7, 2, 5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, transform(image, sample_generator(7, 2, 5)))
    others = [transform(image, sample_generator(*key)) for key in [(8, 2, 5), (7, 3, 5), (7, 2, 6)]]
    assert all(not torch.equal(first, other) for other in others)
    torch.manual_seed(3)
    loose = transform(image, None)
    torch.manual_seed(3)
    assert torch.equal(loose, transform(image, None))


def test_no_crop_when_resize_is_the_size() -> None:
    image = _picture()
    squashed = image.resize((48, 48), Image.Resampling.BILINEAR)
    result = eval_transform(48, resize=48, mean=(0.498,) * 3, std=(0.502,) * 3)(image)
    torch.testing.assert_close(result, normalised(squashed, (0.498,) * 3, (0.502,) * 3))
    cropless = train_transform(48, resize=48, crops=[48])(image, sample_generator(0, 0, 0))
    torch.testing.assert_close(cropless, normalised(squashed, IMAGENET_MEAN, IMAGENET_STD))


def test_with_normalisation_changes_only_that() -> None:
    image, mean, std = _picture(), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    for before, options in ((train_transform(36, flip=True), {"flip": True}), (eval_transform(36), {})):
        make = train_transform if options else eval_transform
        after = before.with_normalisation(mean, std)
        expected = make(36, mean=mean, std=std, **options)(image, sample_generator(0, 0, 1))
        torch.testing.assert_close(after(image, sample_generator(0, 0, 1)), expected)
        assert before.mean == IMAGENET_MEAN


def test_transforms_travel_to_workers() -> None:
    for transform in (train_transform(36, flip=True), eval_transform(36)):
        for twin in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
            result = twin(_picture(), sample_generator(0, 0, 0))
            assert torch.equal(result, transform(_picture(), sample_generator(0, 0, 0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: train_transform(0), "from 1 to 8192 pixels"),
        (lambda: train_transform(64, resize=64, crops=[65]), r"resize = 64, got \[65\]"),
        (lambda: train_transform(64, crops=[]), "crops"),
        (lambda: eval_transform(64, resize=63), "at least size = 64"),
        (lambda: eval_transform(64, mean=(0.5,)), "mean must have 3"),
        (lambda: eval_transform(64, std=(0.5, 0.0, 0.5)), "std must be positive"),
    ],
)
def test_wrong_options_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
