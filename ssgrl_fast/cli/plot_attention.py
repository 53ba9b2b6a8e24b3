"""The verb ``plot-attention``: images, attention maps and label distributions on one sheet.

ssgrl-fast plot-attention photos/ --model runs/ssgrl/version_0/bundle --out attention.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.cli._options import add_predictor_options, load_predictor, verb_parser
from ssgrl_fast.cli._sentences import say
from ssgrl_fast.inference.figures import attention_sheet, save_figure
from ssgrl_fast.inference.image_files import find_images


def main(argv: Sequence[str]) -> int:
    """Run ``plot-attention``: a bundle and images to a sheet.

    Raises:
        FileNotFoundError, ValueError: see :class:`~ssgrl_fast.inference.predictor.Predictor`; true labels that are not
            classes of the model; a count below 1; --out is one of the images.
    """
    options = _parser().parse_args(argv)
    if options.count < 1:
        raise ValueError(f"plot-attention: --count must be at least 1, got {options.count}")
    predictor = load_predictor(options.model, options)
    images = find_images(options.paths)
    if Path(options.out).exists() and any(path.samefile(options.out) for path in images):
        raise ValueError(f"plot-attention: --out {options.out} is one of the images to be read")
    shown = [images[round(place)] for place in np.linspace(0, len(images) - 1, min(options.count, len(images)))]
    targets = {} if options.labels is None else _read_targets(Path(options.labels), predictor.class_names)
    samples = [predictor.sample(path, targets.get(path.name)) for path in shown]
    figure = attention_sheet(samples, predictor.class_names, maps=options.maps, title=options.title)
    say(f"{len(samples)} of {len(images)} images on the sheet {save_figure(figure, options.out)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("plot-attention")
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="image files, or folders that are searched for them")
    add("--model", required=True, metavar="BUNDLE", help="bundle of an SSGRL model, as fit exports it")
    add("--labels", metavar="FILE", help='true labels, shown in red: JSON {"file name": ["class name", ...]}')
    add("--count", type=int, default=6, help="rows at most, spread evenly over the images of PATH (6)")
    add("--maps", type=int, default=3, help="attention maps per row (3)")
    add_predictor_options(parser)
    add("--title", help="title of the sheet (none)")
    add("--out", default="attention.png", help="picture to write: .png, .pdf, .svg or .jpg (attention.png)")
    return parser


def _read_targets(path: Path, class_names: Sequence[str]) -> dict[str, NDArray[np.int8]]:
    """File name to labels [C]: 1 present, -1 absent."""
    if not path.is_file():
        raise FileNotFoundError(f"plot-attention: {path} is no file")
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"plot-attention: {path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(names, list) for names in content.values()):
        raise ValueError(f"plot-attention: {path} must be a JSON object, file name to a list of class names")
    unknown = sorted({str(name) for names in content.values() for name in names if name not in class_names})
    if unknown:
        raise ValueError(f"plot-attention: {path} names classes that the model does not have: {', '.join(unknown)}")
    return {
        file: np.array([1 if name in names else -1 for name in class_names], dtype=np.int8)
        for file, names in content.items()
    }
