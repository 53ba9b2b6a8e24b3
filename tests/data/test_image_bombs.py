"""Images as weapons: a limit of pixels of the project's own, and JPEG files decoded at a reduced size."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_bundles import make_model
from small_sets import make_table

from ssgrl_fast import cli
from ssgrl_fast.data import images
from ssgrl_fast.data.errors import BrokenImage
from ssgrl_fast.data.images import MAX_PIXELS, read_image
from ssgrl_fast.data.transforms import eval_transform
from ssgrl_fast.inference.app.explorer import Explorer
from ssgrl_fast.inference.evaluation import attention_samples
from ssgrl_fast.inference.predict import predict_files
from ssgrl_fast.inference.predictor import Predictor


def bomb(width: int, height: int) -> bytes:
    """A PNG of that size, black and white, in a few bytes: its data stop at once."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def jpeg_said_to_be(width: int, height: int) -> bytes:
    """A small JPEG whose header has another size."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("content", [bomb(60_000, 60_000), jpeg_said_to_be(65_500, 65_500)], ids=["png", "jpeg"])
@pytest.mark.parametrize("side", [None, 640])
def test_a_bomb_is_refused_in_a_sentence_before_it_is_decoded(tmp_path: Path, content: bytes, side: int | None) -> None:
    path = tmp_path / "bomb.bin"
    path.write_bytes(content)
    with warnings.catch_warnings(), pytest.raises(BrokenImage) as caught:
        warnings.simplefilter("error")  # Pillow's own limit of the process has no say
        read_image(path, side=side)
    message = str(caught.value)
    assert message.startswith(f"{path}: 6")
    for part in ("60000 × 60000" if content[:1] == b"\x89" else "65500 × 65500", f"max_pixels = {MAX_PIXELS:,}"):
        assert part in message
    assert "--data.max_pixels" in message and "--max-pixels" in message


def test_the_limit_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 56), "#c00000").save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png", max_pixels=40 * 56).size == (40, 56)
    with pytest.raises(BrokenImage, match="40 × 56 pixels are 2,240, more than max_pixels = 2,239"):
        read_image(tmp_path / "a.png", max_pixels=40 * 56 - 1)


def test_ordinary_jpeg_files_are_decoded_in_full(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    whole = read_image(tmp_path / "a.jpg")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "a.jpg", side=10)), np.asarray(whole))


@pytest.mark.parametrize("side, expected", [(12, (75, 50)), (20, (150, 100)), (50, (300, 200)), (51, (600, 400))])
def test_large_jpeg_files_keep_four_times_the_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(images, "_REDUCED_ABOVE", 10_000)
    exif = Image.Exif()
    exif[0x112] = 6  # turned: the file is 400 wide
    for kind, more in {"plain": {}, "progressive": {"progressive": True}, "turned": {"exif": exif}}.items():
        size = (400, 600) if kind == "turned" else (600, 400)
        Image.new("RGB", size, "#804020").save(tmp_path / f"{kind}.jpg", **more)
        image = read_image(tmp_path / f"{kind}.jpg", side=side)
        assert image.size == expected and image.getpixel((5, 5)) == pytest.approx((128, 64, 32), abs=3)
    Image.new("CMYK", (600, 400)).save(tmp_path / "inks.jpg")
    assert read_image(tmp_path / "inks.jpg", side=side).size == expected
    # twice the limit of pixels where it is reduced, and no more
    name, reduced = tmp_path / "plain.jpg", expected != (600, 400)
    if reduced:
        assert read_image(name, side=side, max_pixels=120_000).size == expected
    with pytest.raises(BrokenImage, match="600 × 400"):
        read_image(name, side=side, max_pixels=119_999 if reduced else 239_999)


def test_a_truncated_large_jpeg_is_still_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_REDUCED_ABOVE", 10_000)
    Image.effect_noise((600, 400), 90).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(BrokenImage, match="a.jpg"):
        read_image(tmp_path / "a.jpg", side=20)


def test_reduced_photographs_differ_by_less_than_one_level(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean difference of the network's pixels, of 255, over real photographs at the smallest size that is allowed."""
    differences = []
    for path in sorted((shared_data / "coco128" / "train2017").glob("*.jpg"))[:12]:
        side = min(Image.open(path).size) // 8  # half the size is four times that
        monkeypatch.setattr(images, "_REDUCED_ABOVE", 1 << 25)
        whole = read_image(path, side=side)
        monkeypatch.setattr(images, "_REDUCED_ABOVE", 1)
        reduced = read_image(path, side=side)
        assert reduced.size[0] == (whole.size[0] + 1) // 2
        view = eval_transform(side, resize=side, mean=(0, 0, 0), std=(1, 1, 1))
        differences.append(255 * (view(whole) - view(reduced)).abs().mean().item())
    assert 0 < np.mean(differences) < 1


def test_strips_convert_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    Image.fromarray(random.integers(0, 256, (50, 37, 4), dtype=np.uint8)).save(tmp_path / "alpha.png")
    Image.fromarray(random.integers(0, 65536, (50, 37), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(random.integers(0, 256, (50, 37, 3), dtype=np.uint8)).quantize(9).save(
        tmp_path / "palette.gif", transparency=3
    )
    for name in ("alpha.png", "deep.png", "palette.gif"):
        whole = np.asarray(read_image(tmp_path / name))
        with monkeypatch.context() as patch:
            patch.setattr(images, "_STRIP", 37 * 7)
            np.testing.assert_array_equal(np.asarray(read_image(tmp_path / name)), whole)


_PEAK = """
import resource, sys
from PIL import Image
from ssgrl_fast.data.images import read_image
read_image(sys.argv[1], side=64, max_pixels=10**6)  # the decoder is loaded
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_image(sys.argv[2], side=64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_for_a_large_jpeg_is_bounded_by_the_network(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "small.jpg")
    Image.new("RGB", (6000, 6000), "#204060").save(tmp_path / "large.jpg")  # 144 MB in full
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, tmp_path / "small.jpg", tmp_path / "large.jpg"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) * 1024 < 30_000_000


def test_data_sets_and_predictors_read_large_files_for_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file over the limit in full is read where it is needed small, by every reader; in full it is refused."""
    datamodule = pytest.importorskip("ssgrl_fast.data.datamodule")
    monkeypatch.setattr(images, "_REDUCED_ABOVE", 10_000)
    make_table(tmp_path)
    for path in (tmp_path / "images").iterdir():
        Image.new("RGB", (600, 400), "#804020").save(path)
    options = {"kind": "csv", "root": str(tmp_path), "image_size": 32, "resize": 32, "max_pixels": 130_000}
    for more in ({}, {"crops": [32]}, {"on_error": "skip"}):
        data = datamodule.MultiLabelDataModule(**options, **more)
        assert len(data.train_dataset) == 20
        assert data.train_dataset[0]["image"].shape == data.test_dataset[0]["image"].shape == (3, 32, 32)
    with pytest.raises(BrokenImage, match="600 × 400"):
        data.train_dataset.load_image(0)
    features = pytest.importorskip("ssgrl_fast.data.features")
    view = eval_transform(32, resize=32)
    assert features._read(data.test_dataset, view, 0).shape == (3, 32, 32)
    model = make_model()
    model.preprocessing = {"image_size": 32, "resize": 32}
    model.save_pretrained(tmp_path / "bundle")
    predictor = Predictor.load(tmp_path / "bundle", max_pixels=130_000)
    assert predictor.read(data.train_dataset.paths[0]).shape == (3, 32, 32)
    assert predictor.sample(data.train_dataset.paths[0]).image.shape == (200, 300, 3)
    (row,) = predict_files(predictor, data.train_dataset.paths[:1], overlays=tmp_path / "overlays")["files"]
    assert Image.open(row["overlays"][0]).size == (300, 200)
    assert attention_samples(predictor, data.test_dataset, (32, 32), 1)[0].image.shape == (200, 300, 3)
    assert Explorer(predictor).analyse(data.train_dataset.paths[0]).image.shape == (200, 300, 3)
    with pytest.raises(BrokenImage, match="max_pixels = 110,000"):
        Predictor.load(tmp_path / "bundle", max_pixels=110_000).read(data.train_dataset.paths[0])
    with pytest.raises(ValueError, match="max_pixels must be at least 1 pixel, got 0"):
        Predictor.load(tmp_path / "bundle", max_pixels=0)


def test_data_sets_and_predictions_have_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datamodule = pytest.importorskip("ssgrl_fast.data.datamodule")
    make_table(tmp_path / "set")
    options = {"kind": "csv", "root": str(tmp_path / "set"), "image_size": 32}
    data = datamodule.MultiLabelDataModule(**options, max_pixels=24 * 32 - 1)
    with pytest.raises(BrokenImage, match=r"\.jpg: 32 × 24 pixels are 768, more than max_pixels = 767"):
        data.train_dataset[0]
    assert datamodule.MultiLabelDataModule(**options, max_pixels=24 * 32).train_dataset[0]["image"].shape[-1] == 32
    with pytest.raises(ValueError, match="all .* images were left out"):
        _ = datamodule.MultiLabelDataModule(**options, max_pixels=767, on_error="skip").train_dataset
    with pytest.raises(ValueError, match="max_pixels must be at least 1, got 0"):
        datamodule.MultiLabelDataModule(**options, max_pixels=0)
    model = make_model()
    model.preprocessing = {"image_size": 32, "resize": 32}
    model.save_pretrained(tmp_path / "bundle")
    command = ["predict", str(tmp_path / "set" / "images"), f"--model={tmp_path / 'bundle'}", "--no-progress"]
    assert cli.main([*command, "--max-pixels=767"]) == 1
    assert "32 × 24 pixels are 768, more than max_pixels = 767" in capsys.readouterr().err
    assert cli.main([*command, "--max-pixels=767", "--skip-broken", f"--output={tmp_path / 'a.json'}"]) == 0
    assert len(json.loads((tmp_path / "a.json").read_text())["broken"]) == 26
