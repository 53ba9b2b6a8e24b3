"""ssgrl_fast.data.digits: a fixed graph of labels, disjoint digits, and canvases that are a function of (canvas_seed,
split, index)."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
import torch

from ssgrl_fast.data import digits
from ssgrl_fast.data.digits import COUNTS, COUPLING, FIELD, SPLITS, DigitCanvases, conditional_probabilities, label_sets
from ssgrl_fast.data.transforms import eval_transform


@pytest.fixture(scope="module")
def train() -> DigitCanvases:
    return DigitCanvases("train", 1500)


def test_samples(train: DigitCanvases) -> None:
    sample = train[3]
    assert sample["image"].shape == (3, 64, 64) and sample["image"].dtype == torch.float32
    assert sample["target"].shape == (10,) and sample["target"].dtype == torch.int8 and sample["index"] == 3
    assert train.class_names == ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert len(train) == len(train.ids) == len(set(train.ids)) == 1500
    pixels = np.asarray(train.load_image(3)).astype(np.float32)
    expected = (pixels / 255 - np.float32(0.5)) / np.float32(0.25)
    np.testing.assert_allclose(sample["image"].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_pixels_and_labels_are_varied(train: DigitCanvases) -> None:
    assert train.pixels.dtype == torch.uint8 and len({image.numpy().tobytes() for image in train.pixels}) == 1500
    assert train.pixels.float().std((1, 2, 3)).min() > 3  # no empty canvas
    counts = (train.labels == 1).sum(1)
    assert counts.min() == 1 and counts.max() == 5 and (train.labels == 1).sum(0).min() > 150
    assert set(train.labels.unique().tolist()) == {-1, 1}


def test_label_model_against_a_direct_sum() -> None:
    """The log-linear model of the docstring, summed term by term over the 637 sets."""
    joint, total = np.zeros((10, 10)), 0.0
    for size in range(1, 6):
        for chosen in itertools.combinations(range(10), size):
            energy = sum(FIELD[i] for i in chosen)
            energy += sum(COUPLING.get(pair, 0.0) for pair in itertools.combinations(chosen, 2))
            total += math.exp(energy)
            for i, j in itertools.product(chosen, repeat=2):
                joint[i, j] += math.exp(energy)
    np.testing.assert_allclose(conditional_probabilities(), joint / joint.diagonal()[:, None], rtol=1e-12)
    sets, probability = label_sets()
    np.testing.assert_allclose(probability.sum(), 1)
    np.testing.assert_allclose(sets.T @ probability, joint.diagonal() / total, rtol=1e-12)


def test_graph_is_directed_and_far_from_independent() -> None:
    graph = conditional_probabilities()
    marginal = label_sets()[0].T @ label_sets()[1]
    off = ~np.eye(10, dtype=bool)
    assert np.abs(graph - graph.T)[off].max() > 0.3
    lift = graph / marginal
    assert lift[off].max() > 1.5 and lift[off].min() < 0.35


def test_drawn_labels_follow_the_graph(train: DigitCanvases) -> None:
    present = (train.labels == 1).double().numpy()
    joint = present.T @ present
    counted = joint / joint.diagonal()[:, None]
    exact = conditional_probabilities()
    error = 4.5 * np.sqrt(exact * (1 - exact) / joint.diagonal()[:, None])  # 4.5 standard deviations
    assert (np.abs(counted - exact) <= error + 1e-12).all()


def test_no_digit_is_in_two_splits() -> None:
    ranges = [set(range(*SPLITS[split])) for split in SPLITS]
    assert sum(map(len, ranges)) == len(set.union(*ranges)) == 1797
    scans = {split: digits._scans(split)[0] for split in SPLITS}
    seen = [{scan.numpy().tobytes() for scan in scans[split]} for split in SPLITS]
    assert not seen[0] & seen[2] and not seen[1] & seen[2] and not seen[0] & seen[1]
    for split in SPLITS:
        assert np.bincount(digits._scans(split)[1], minlength=10).min() >= 10


@pytest.mark.parametrize("count", [1, 63, 64, 65, 130])
def test_a_canvas_does_not_depend_on_how_many_are_made(train: DigitCanvases, count: int) -> None:
    few = DigitCanvases("train", count)
    assert torch.equal(few.pixels, train.pixels[:count]) and torch.equal(few.labels, train.labels[:count])


def test_seeds_and_splits_give_other_canvases(train: DigitCanvases) -> None:
    for other in (DigitCanvases("train", 64, canvas_seed=1), DigitCanvases("val", 64), DigitCanvases("test", 64)):
        assert not torch.equal(other.labels, train.labels[:64])
        assert (other.pixels != train.pixels[:64]).float().mean() > 0.9
    same = DigitCanvases("train", 64, seed=5)
    assert torch.equal(same.pixels, train.pixels[:64])


def test_a_class_changes_the_picture_where_it_is_claimed() -> None:
    """Without noise and distractors, a canvas of one class shows as much ink as that class's digits, and an empty one
    none."""
    patches = torch.zeros(1, 16, 8, 8)
    cells = np.arange(16)[None]
    place = np.full((1, 16, 4), 0.5)
    assert float(digits._placed(patches, cells, place, 64).abs().sum()) == 0
    patches[0, 5] = digits._scans("train")[0][0]
    mask = digits._placed(patches, cells, place, 64)[0]
    assert mask[[cell for cell in range(16) if cell != 5]].abs().sum() == 0
    inside = mask[5, 13:35, 13:35].sum() / mask[5].sum()
    assert inside == 1 and 0.8 < mask[5].max() <= 1  # 17 pixels seldom meet the middle of a scan


@pytest.mark.parametrize("size", [32, 96])
def test_other_canvas_sizes(train: DigitCanvases, size: int) -> None:
    other = DigitCanvases("train", 64, size=size)
    assert other.pixels.shape == (64, 3, size, size) and torch.equal(other.labels, train.labels[:64])
    small = torch.nn.functional.interpolate(other.pixels.float(), (16, 16), mode="area")
    expected = torch.nn.functional.interpolate(train.pixels[:64].float(), (16, 16), mode="area")
    assert (small - expected).abs().mean() < 12  # the same pictures, up to noise


def test_transform_and_normalisation(train: DigitCanvases) -> None:
    part = train.select([2, 0], transform=eval_transform(32, resize=32))
    assert part[1]["image"].shape == (3, 32, 32) and part.ids == [train.ids[2], train.ids[0]]
    torch.testing.assert_close(part[1]["image"], eval_transform(32, resize=32)(train.load_image(0)))
    plain = train.select([0])
    before = plain[0]["image"]
    other = plain.with_normalisation((0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(other[0]["image"], before / 2)
    assert torch.equal(plain[0]["image"], before)
    torch.testing.assert_close(train[0]["image"], before)
    with pytest.raises(ValueError, match="std positive"):
        plain.with_normalisation((0.5,) * 3, (0.5, 0.5, 0.0))


def test_all_pixels_are_shared_when_all_are_selected(train: DigitCanvases) -> None:
    assert train.select(range(len(train))).pixels.data_ptr() == train.pixels.data_ptr()


@pytest.mark.parametrize("options", [{"split": "trial"}, {"count": 0}, {"size": 8}, {"canvas_seed": -1}, {"seed": -1}])
def test_wrong_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        DigitCanvases(**({"count": 1} | options))  # type: ignore[arg-type]
    assert set(COUNTS) == set(SPLITS)


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"ssgrl_fast.data.digits needs .*pip install 'ssgrl_fast\[train\]'"):
        DigitCanvases("train", 1)


def test_occlusion_hides_half_of_the_rare_digits_alone() -> None:
    """Everything else of a canvas stays: labels, places, noise; a canvas without rare digits is the same."""
    whole, half = DigitCanvases("train", 200), DigitCanvases("train", 200, occlusion=1.0)
    some = DigitCanvases("train", 200, occlusion=0.5)
    assert torch.equal(whole.labels, half.labels)
    rare = (whole.labels[:, list(digits.RARE)] == 1).any(1)
    changed, partly = ((other.pixels != whole.pixels).flatten(1).any(1) for other in (half, some))
    assert torch.equal(changed, rare) and 0.3 * rare.sum() < partly.sum() < rare.sum() and not (partly & ~rare).any()
    scans, classes = digits._scans("train")
    labels, keys = np.zeros((1, 10), dtype=bool), np.full((1, 16), 0.3)
    labels[0, [2, 3]] = True  # two is common, three is rare; no second digits, no distractors
    patches = digits._patches(labels, np.ones((1, 10)), np.zeros(1), keys, np.ones((1, 16), bool), scans, classes)[0]
    two, three = (scans[np.flatnonzero(classes == digit)[int(0.3 * (classes == digit).sum())]] for digit in (2, 3))
    assert torch.equal(patches[0], two) and torch.equal(patches[1, :, 4:], three[:, 4:])
    assert three[:, :4].any() and not patches[1, :, :4].any() and not patches[2:].any()
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="0 <= occlusion <= 1 are needed"):
            DigitCanvases("train", 8, occlusion=wrong)


def test_the_default_transform_gives_the_same_tensors(train: DigitCanvases) -> None:
    few = train.select(range(4)).with_normalisation((0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    transform = few.default_transform()
    for index in range(4):
        torch.testing.assert_close(transform(few.load_image(index)), few.load_tensor(index), rtol=0, atol=1e-6)
