"""Predict the labels of your photographs with a bundle (a saved model folder), from Python.

    python examples/predict_photos.py BUNDLE photos/ --overlays maps/

The command line does the same: `ssgrl-fast predict --model BUNDLE photos/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ssgrl_fast.inference.image_files import find_images
from ssgrl_fast.inference.predict import predict_files
from ssgrl_fast.inference.predictor import Predictor


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder written by save_pretrained, train_digits.py or `ssgrl-fast fit`")
    parser.add_argument("paths", nargs="+", help="image files or folders of images")
    parser.add_argument(
        "--overlays", type=Path, help="folder for pictures of the attention of the three highest labels"
    )
    options = parser.parse_args(arguments)

    predictor = Predictor.load(options.bundle)
    result = predict_files(predictor, find_images(options.paths), overlays=options.overlays, skip_broken=True)
    for row in result["files"]:
        best = ", ".join(f"{entry['class']} {entry['probability']:.2f}" for entry in row["scores"][:3])
        print(f"{row['file']}: {', '.join(row['labels']) or 'no label above 0.5'}   ({best})")
    for entry in result["broken"]:
        print(f"left out: {entry['error']}")
    return result


if __name__ == "__main__":
    main()
