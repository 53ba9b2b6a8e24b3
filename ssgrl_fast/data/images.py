"""Reads image files of all common formats as upright 8-bit RGB images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ssgrl_fast._utils.checks import need
from ssgrl_fast.data.errors import BrokenImage

need("PIL", "train", "ssgrl_fast.data.images")
from PIL import Image, ImageOps  # noqa: E402

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_image(path: str | Path) -> Image.Image:
    """Read one image file as upright RGB.

    The EXIF orientation is applied. Grey, palette, CMYK and YCbCr images are converted, transparent images composed on
    white, and 16-bit grey values scaled by 255/65535; of an animation the first frame is used.

    Returns:
        PIL image of mode RGB, 8 bits per channel.

    Raises:
        FileNotFoundError: the file does not exist.
        BrokenImage: the file is not an image, is truncated, exceeds Pillow's size limit, or its pixels have no fixed
            range (32-bit integers, floating point). The message names the file.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many types: OSError, SyntaxError, struct.error, IndexError
        raise BrokenImage(f"{path}: {error or type(error).__name__}") from error


def _rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB.

    Raises:
        ValueError: the pixels have no fixed range.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257  # 0 .. 65535 -> 0 .. 255, rounded
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range, expected an 8-bit or 16-bit image")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        straight = image.convert("RGBA")
        white = Image.new("RGBA", straight.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, straight).convert("RGB")
    return image.convert("RGB")
