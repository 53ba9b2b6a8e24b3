"""What the parsers of several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssgrl_fast.cli import VERBS

if TYPE_CHECKING:
    from ssgrl_fast.inference.predictor import Predictor


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb, without options yet; its description is the verb's line of help."""
    return argparse.ArgumentParser(
        prog=f"ssgrl-fast {verb}", description=VERBS[verb], epilog="The default of an option is given in parentheses."
    )


def add_predictor_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verbs that run a bundle on images, which :func:`load_predictor` reads."""
    parser.add_argument("--image-size", type=int, help="side of the network's input, pixels (the bundle's)")
    parser.add_argument("--resize", type=int, help="side of the square before the centre crop, pixels (the bundle's)")
    parser.add_argument("--device", default="cpu", help="where the model runs (cpu)")
    parser.add_argument("--backend", help="backend of the three operations (the fastest)")
    from ssgrl_fast.data.options import ImageOptions  # verbs without a predictor do without its imports

    parser.add_argument(
        "--max-pixels",
        type=int,
        default=ImageOptions.max_pixels,
        metavar="N",
        help=f"width times height that an image may have, twice as many where a JPEG file is decoded at a reduced size "
        f"({ImageOptions.max_pixels:,})",
    )
    add_precision_options(parser, dtype=None)


def add_precision_options(parser: Any, *, dtype: str | None) -> None:
    """Add the options that say who computes the network, and in which precision, by default ``dtype`` (None: that of
    the bundle's weights)."""
    from ssgrl_fast.inference.predictor import DTYPES
    from ssgrl_fast.inference.runtimes import RUNTIMES

    parser.add_argument(
        "--runtime",
        default="torch",
        choices=list(RUNTIMES),
        help="who computes the backbone: torch, or on a CPU one of the others; auto takes the fastest that is "
        "installed and gives the same logits (torch)",
    )
    parser.add_argument(
        "--dtype",
        default=dtype,
        choices=list(DTYPES),
        help="precision of the network; auto: bfloat16 where the device has instructions for it, else float32; int8: "
        "the backbone in int8 by OpenVINO; fp8: bfloat16 with the graph's products in e4m3 "
        f"({dtype or 'as the bundle is stored'})",
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        default=[],
        metavar="PATH",
        help="photographs or their folders for --dtype int8, needed once for each bundle and image size",
    )


def predictor_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the options of :func:`add_predictor_options` say to :meth:`Predictor.load`."""
    names = ("image_size", "resize", "device", "backend", "runtime", "max_pixels", "dtype")
    return {**{name: getattr(options, name) for name in names}, "calibration": calibration_images(options)}


def calibration_images(options: Any) -> Sequence[Path]:
    """The photographs that ``--calibration`` names."""
    from ssgrl_fast.inference.image_files import find_images

    return find_images(options.calibration) if options.calibration else ()


def load_predictor(bundle: str | Path, options: argparse.Namespace) -> Predictor:
    """Load the predictor that the options of :func:`add_predictor_options` describe.

    Raises:
        FileNotFoundError, ValueError, BackendUnavailable: see :meth:`Predictor.load`.
    """
    from ssgrl_fast.inference.predictor import Predictor

    return Predictor.load(bundle, **predictor_settings(options))


def add_compound_option(parser: argparse.ArgumentParser) -> None:
    """The option ``--compound`` of the verbs that look up words, which :func:`compounds_of` reads."""
    parser.add_argument(
        "--compound",
        action="append",
        default=[],
        metavar="WORD=A+B",
        help="words whose vectors are averaged where WORD is unknown, or in place of a whole class name; may be given "
        "several times",
    )


def compounds_of(options: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """The compounds of :data:`ssgrl_fast.labels.words.COMPOUNDS` and those of ``--compound``.

    Raises:
        ValueError: one that does not read WORD=A+B.
    """
    from ssgrl_fast.labels.words import COMPOUNDS

    return {**COMPOUNDS, **given_compounds(options)}


def given_compounds(options: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Those of ``--compound`` alone; errors as :func:`compounds_of`."""
    compounds: dict[str, tuple[str, ...]] = {}
    for text in options.compound:
        word, _, parts = text.rpartition("=")
        averaged = tuple(part.strip() for part in parts.split("+"))
        if not word.strip() or not all(averaged):
            raise ValueError(f"words: --compound must read WORD=A+B, got {text!r}")
        compounds[word.strip()] = averaged
    return compounds
