"""Reads image files of all formats that Pillow decodes as upright 8-bit RGB images, and finds them in folders."""

from __future__ import annotations

import importlib
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.escape import for_terminal
from ssgrl_fast.data.errors import BrokenImage, Unreachable
from ssgrl_fast.data.options import ImageOptions

need("PIL", "train", "ssgrl_fast.data.images")
from PIL import Image, ImageFile, ImageOps  # noqa: E402

_NEED_PROGRAMS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow opens them by running or needing others
_NO_PHOTOGRAPHS = ("BLP", "CUR", "FITS", "FLI", "GBR", "ICNS", "ICO", "IPTC", "PCD")
# .pcd is mostly a point cloud, .fit a track; .ico, .icns and .blp do not say in their header how much is decoded
_HEIF = (".heic", ".heif", ".hif")
_NAMED = 5  # files that a message names
_REDUCED_ABOVE = 1 << 25  # pixels: 134 MB in Pillow
_DRAFT_SIDES = 4  # at fewer times the side, pixels differ by 1 to 3 of 255 from those of the whole image, at 4 by 0.5
_STRIP = 1 << 22  # pixels that are converted at once
MAX_PIXELS = ImageOptions.max_pixels
"""Width times height that an image may have, if nothing else is said."""


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


def is_image_name(path: PurePath) -> bool:
    """Whether a file in a folder is taken for an image, by its extension in any letters."""
    return path.suffix.lower() in EXTENSIONS


def passed_over_text(paths: Iterable[PurePath]) -> str:
    """A clause about the files of a folder that are not taken for images: how many, their names or, of many, their
    kinds, and what HEIC needs; empty if there are none."""
    names = [for_terminal(path.name) for path in paths]
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


def read_image(
    path: str | Path,
    *,
    side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    opener: Callable[[], IO[bytes]] | None = None,
) -> Image.Image:
    """Read one image file as upright RGB.

    The EXIF orientation is applied. Grey, palette, CMYK and YCbCr images are converted, transparent images composed on
    white, and 16-bit grey values scaled by 255/65535; of an animation the first frame is used.

    Args:
        path: the file.
        side: of the square that the image will be resized to, pixels. A JPEG file of more than 2^25 pixels is then
            decoded at 1/2, 1/4 or 1/8 of its width and height, as long as both stay at least 4 times ``side``. None: in
            full.
        max_pixels: width times height that an image may have, twice as many where it is decoded at a reduced size.
            Pillow's own limit of the process, ``MAX_IMAGE_PIXELS``, does not count.
        opener: gives the bytes of an image that is no file, ``path`` is its name (:mod:`ssgrl_fast.data.sources`).

    Returns:
        PIL image of mode RGB, 8 bits per channel.

    Raises:
        FileNotFoundError: the file does not exist.
        BrokenImage: the file is not an image, is truncated, has more pixels than allowed, or its pixels have no fixed
            range (32-bit integers, floating point). The message names the file.
    """
    try:
        with open(path, "rb") if opener is None else opener() as file:
            image = _opened(file, str(path))
            _bound(image, side, max_pixels)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except (FileNotFoundError, MemoryError, BrokenImage, Unreachable):
        raise
    except Exception as error:  # Pillow's decoders raise many types: OSError, SyntaxError, struct.error, IndexError
        raise BrokenImage(f"{path}: {error or type(error).__name__}") from error


def _opened(file: IO[bytes], name: str) -> ImageFile.ImageFile:
    """The image whose header a file begins with, by Pillow's table of formats: ``Image.open`` has a limit of pixels
    that belongs to the process, and warns of sizes that are allowed here."""
    if not (start := file.read(16)):
        raise ValueError("the file is empty")
    for kind in _FORMATS:
        factory, accepts = Image.OPEN[kind]
        with suppress(SyntaxError, IndexError, TypeError, struct.error):  # another format, as in Image.open
            if accepts is None or accepts(start) is True:
                file.seek(0)
                return factory(file, name)
    raise ValueError("cannot identify image file")


def _bound(image: ImageFile.ImageFile, side: int | None, max_pixels: int) -> None:
    """Have an image that was opened decoded at a reduced size, where that is allowed.

    Raises:
        ValueError: it has too many pixels.
    """
    (width, height), factor = image.size, 1
    if side is not None and width * height > _REDUCED_ABOVE:
        sizes = [each for each in (8, 4, 2) if min(width, height) // each >= _DRAFT_SIDES * side]
        reduce: Any = getattr(image, "draft", None)  # of JPEG files
        if sizes and reduce(None, (width // sizes[0], height // sizes[0])) is not None:
            factor = sizes[0]
    if width * height > max_pixels * (1 if factor == 1 else 2):
        raise ValueError(
            f"{width} × {height} pixels are {width * height:,}, more than max_pixels = {max_pixels:,} (for a JPEG file "
            "that is decoded at a reduced size twice as many); --data.max_pixels, or --max-pixels where images are "
            "named, allows more"
        )


def _rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; a large one by strips, since some conversions hold four copies.

    Raises:
        ValueError: the pixels have no fixed range.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"pixels of mode {image.mode} have no fixed range, expected an 8-bit or 16-bit image")
    width, height = image.size
    if width * height <= _STRIP:
        return _converted(image)
    result, rows = Image.new("RGB", image.size), max(1, _STRIP // width)
    for top in range(0, height, rows):
        result.paste(_converted(image.crop((0, top, width, min(top + rows, height)))), (0, top))
    return result


def _converted(image: Image.Image) -> Image.Image:
    """Pixels of a known range as RGB."""
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257  # 0 .. 65535 -> 0 .. 255, rounded
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        straight = image.convert("RGBA")
        white = Image.new("RGBA", straight.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, straight).convert("RGB")
    return image.convert("RGB")
