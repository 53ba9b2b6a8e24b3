"""Files with one flipped bit: refused, or of the same content; never other numbers in silence."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the training extra is not installed")

from ssgrl_fast.data.digits import DigitCanvases
from ssgrl_fast.data.features import cache_features
from ssgrl_fast.data.transforms import eval_transform
from ssgrl_fast.models.backbones import build_backbone, freeze_backbone
from ssgrl_fast.training.checkpoint import AtomicCheckpointIO, read_checkpoint

FLIPS = 200


def flip(path: Path, whole: bytes, draw: random.Random) -> None:
    """Replace the file by its content with one bit flipped."""
    content = bytearray(whole)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def test_a_checkpoint_with_a_flipped_bit_never_gives_other_weights(tmp_path: Path) -> None:
    path, draw, refused = tmp_path / "last.ckpt", random.Random(0), 0
    weights = torch.randn(40, 25, generator=torch.Generator().manual_seed(0))
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": weights}, "epoch": 3}, path)
    whole = path.read_bytes()
    for _ in range(FLIPS):
        flip(path, whole, draw)
        try:
            found = read_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:  # the bit was padding of the archive
            assert torch.equal(found["state_dict"]["w"], weights) and found["epoch"] == 3
    assert refused > FLIPS / 2


@pytest.mark.thorough
def test_a_store_with_a_flipped_bit_never_gives_other_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = freeze_backbone(build_backbone("small-cnn", pretrained=False), "all")
    images = DigitCanvases("test", 4)
    images.transform = eval_transform(16, resize=16)

    def read() -> list[torch.Tensor]:
        cached = cache_features(images, backbone, tmp_path, name="small-cnn", progress=False)
        return [cached[row]["features"] for row in range(4)]

    features = read()
    (store,) = tmp_path.iterdir()
    draw, refused = random.Random(0), 0
    for name in ("plain.npy", "meta.json"):
        whole = (store / name).read_bytes()
        for _ in range(FLIPS):
            flip(store / name, whole, draw)
            try:
                found = read()
            except ValueError as error:
                assert str(store) in str(error), error
                refused += 1
            else:  # blanks of the header or between JSON's entries
                assert all(map(torch.equal, found, features))
        (store / name).write_bytes(whole)
    assert refused > FLIPS


@pytest.mark.parametrize(
    "entries",
    [
        {"state_dict": [1]},
        {"state_dict": {"w": 1}},
        {"epoch": "3"},
        {"global_step": -1},
        {"epoch": None},
        {"epoch": True},
    ],
    ids=str,
)
def test_entries_of_another_type_are_refused(entries: dict[str, object], tmp_path: Path) -> None:
    whole = {"state_dict": {"w": torch.ones(2)}, "epoch": 3, "global_step": 9}
    torch.save(whole, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["epoch"] == 3
    torch.save({**whole, **entries}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"last\.ckpt: a damaged checkpoint: 'state_dict' must hold tensors"):
        read_checkpoint(tmp_path / "last.ckpt")
