"""Reads image files of all formats that Pillow decodes as upright 8-bit RGB images, and finds them in folders."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from ssgrl_fast._utils.checks import need
from ssgrl_fast.data.errors import BrokenImage

need("PIL", "train", "ssgrl_fast.data.images")
from PIL import Image, ImageOps  # noqa: E402

_NEED_PROGRAMS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow opens them by running or needing others
_NO_PHOTOGRAPHS = ("CUR", "FITS", "FLI", "GBR", "IPTC", "PCD")  # .pcd is mostly a point cloud, .fit a track
_HEIF = (".heic", ".heif", ".hif")
_NAMED = 5  # files that a message names


def _formats() -> list[str]:
    """The formats that Pillow decodes by itself and that hold photographs, HEIC too if pillow-heif is installed."""
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return [name for name in Image.ID if name not in (*_NEED_PROGRAMS, *_NO_PHOTOGRAPHS)]


_FORMATS = _formats()
EXTENSIONS = frozenset(
    extension
    for extension, name in Image.registered_extensions().items()
    if name in (*_FORMATS, "MPO")  # which Pillow opens as JPEG
)
"""Extensions, in lower case and with the dot, of the files in a folder that are taken for images."""


def is_image_name(path: Path) -> bool:
    """Whether a file in a folder is taken for an image, by its extension in any letters."""
    return path.suffix.lower() in EXTENSIONS


def passed_over_text(paths: Iterable[Path]) -> str:
    """A clause about the files of a folder that are not taken for images: how many, their names or, of many, their
    kinds, and what HEIC needs; empty if there are none."""
    names = [path.name for path in paths]
    if not names:
        return ""
    if len(names) > _NAMED:
        kinds = Counter(Path(name).suffix.lower() or "no extension" for name in names)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    else:
        listed = ", ".join(names)
    heif = any(name.lower().endswith(_HEIF) for name in names)
    hint = "; HEIC needs pillow-heif: pip install pillow-heif" if heif else ""
    counted = "1 file" if len(names) == 1 else f"{len(names)} files"
    return f"{counted} without an image's extension passed over: {listed}{hint}"


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
        with Image.open(path, formats=_FORMATS) as image:
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
