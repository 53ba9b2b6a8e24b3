"""The memory of predict and evaluate does not grow with the number of images."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")

from killed_runs import finish, peak
from PIL import Image
from small_bundles import NAMES, make_model

SIDE, FILES = 64, 50
SCALE = 10


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    model = make_model()
    model.preprocessing = {"image_size": SIDE, "resize": SIDE}
    model.save_pretrained(tmp_path / "bundle")
    return tmp_path / "bundle"


def make_photos(folder: Path, count: int) -> Path:
    """Pictures of noise under ``count`` names, and a table of their labels."""
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:06}.png"
        if number < FILES:
            Image.frombytes("RGB", (SIDE, SIDE), random.Random(number).randbytes(SIDE * SIDE * 3)).save(path)
        else:
            os.link(folder / f"{number % FILES:06}.png", path)
    rows = (f"{number:06}.png,{NAMES[number % 3]},{'test' if number else 'train'}\n" for number in range(count))
    (folder / "labels.csv").write_text("file,labels,split\n" + "".join(rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "images", [pytest.param(200, marks=pytest.mark.thorough), pytest.param(1000, marks=pytest.mark.long)]
)
@pytest.mark.parametrize(
    "verb", ["predict", "predict to shards", "predict with overlays", "evaluate", "evaluate ten-crop"]
)
def test_peaks_of_few_and_of_ten_times_as_many_images(verb: str, images: int, bundle: Path, tmp_path: Path) -> None:
    peaks = []
    for count in (images, SCALE * images):
        photos = make_photos(tmp_path / f"{count} photos", count)
        out = tmp_path / f"{count}"
        if verb.startswith("predict"):
            command = ["predict", photos, "--model", bundle]
            command += ["--output", f"{out} shards" if verb.endswith("shards") else f"{out}.jsonl"]
            command += ["--overlays", out, "--overlay-maps", "1"] if verb.endswith("overlays") else []
        else:
            command = ["evaluate", "--model", bundle, "--output", out, "--data.kind", "csv", "--data.root", photos]
            command += ["--attention", "4"]
            command += ["--views", "ten-crop", "--scales", "72"] if verb.endswith("ten-crop") else []
        finish([*command, "--no-progress"], tmp_path / "log")
        peaks.append(peak(tmp_path / "log"))
    few, many = peaks
    growth = (many - few) / ((SCALE - 1) * images)
    print(f"{verb}: {few / 1e6:.0f} and {many / 1e6:.0f} MB for {images} and {SCALE * images} images")
    assert many < 1.1 * few
    assert growth < SIDE * SIDE * 3, "less than the picture's own bytes for each image more"
