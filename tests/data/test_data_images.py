"""ssgrl_fast.data.images: every common kind of image file to upright RGB, and broken ones named."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssgrl_fast.data.errors import BrokenImage
from ssgrl_fast.data.images import read_image


def _gradient(height: int = 40, width: int = 56) -> np.ndarray:
    """A smooth RGB picture in which no two corners are alike, uint8 [H, W, 3]."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // height, columns * 255 // width, 255 - rows * 128 // height], -1).astype(np.uint8)


def _jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_gradient()).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def test_rgb_png_comes_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(_gradient()).save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), _gradient())


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_jpeg_is_broken_and_named(tmp_path: Path, progressive: bool, share: float) -> None:
    path = tmp_path / "cut.jpg"
    whole = _jpeg(progressive=progressive)
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BrokenImage, match="cut.jpg"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty$"),
        (b"x", "cannot identify image file$"),
        (b"not an image at all", "cannot identify image file$"),
        (b"\xff\xd8\xff", ""),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, ""),
    ],
)
def test_other_broken_files_are_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(content)
    with pytest.raises(BrokenImage, match=f"odd.jpg: {why}"):
        read_image(path)


def test_png_with_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "flipped.png"
    Image.fromarray(_gradient()).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BrokenImage, match="flipped.png"):
        read_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.jpg"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(BrokenImage, match=tmp_path.name):
        read_image(tmp_path)


def test_broken_image_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(BrokenImage("a.jpg: cut short")))
    assert isinstance(error, BrokenImage) and str(error) == "a.jpg: cut short"


def test_grey_and_cmyk(tmp_path: Path) -> None:
    grey = Image.fromarray(_gradient()[..., 0])
    grey.save(tmp_path / "grey.png")
    image = np.asarray(read_image(tmp_path / "grey.png"))
    assert image.shape == (40, 56, 3)
    np.testing.assert_array_equal(image, np.repeat(np.asarray(grey)[..., None], 3, -1))
    Image.fromarray(_gradient()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    cmyk = np.asarray(read_image(tmp_path / "cmyk.jpg")).astype(int)
    assert np.abs(cmyk - _gradient()).mean() < 6  # inverted inks would be off by about 85


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(_gradient()).quantize(64)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "p.png")), np.asarray(palette.convert("RGB")))
    palette.save(tmp_path / "t.gif", transparency=int(np.asarray(palette)[0, 0]))
    image = np.asarray(read_image(tmp_path / "t.gif"))
    assert image[0, 0].tolist() == [255, 255, 255]
    assert image[-1, -1].tolist() != [255, 255, 255]


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:2] = (200, 0, 0, 255)
    rgba[2:] = (200, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    image = np.asarray(read_image(tmp_path / "a.png")).astype(int)
    assert image[0, 0].tolist() == [200, 0, 0]
    assert np.abs(image[3, 3] - [227, 127, 127]).max() <= 1  # 255 + (c - 255) * 128 / 255


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128], [32768, 65535, 60000]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = np.asarray(read_image(tmp_path / "deep.png"))
    assert image[..., 0].tolist() == [[0, 1, 0], [128, 255, 233]]
    assert (image[..., 0] == image[..., 2]).all()


def test_pixels_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).random((4, 4), dtype=np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(BrokenImage, match="f.tif.*mode F"):
        read_image(tmp_path / "f.tif")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(_gradient()).save(tmp_path / "turned.png", exif=exif)
    image = np.asarray(read_image(tmp_path / "turned.png"))
    np.testing.assert_array_equal(image, np.rot90(_gradient(), -1))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("#c00000", "#0000c0")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "film.gif").getpixel((3, 3)) == (192, 0, 0)
