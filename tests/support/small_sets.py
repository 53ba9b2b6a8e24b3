"""Small made data sets in the formats of COCO and Pascal VOC, and as a table of labels."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ["boat", "bird", "chair"]


def make_images(folder: Path, count: int, seed: int) -> list[list[int]]:
    """JPEGs of noise called 000000.jpg … and the labels of each."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    labels = []
    for index in range(count):
        Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{index:06d}.jpg")
        labels.append(sorted({index % 3, (index // 3) % 3}))
    return labels


def make_coco(root: Path, splits: tuple[str, str]) -> None:
    (root / "annotations").mkdir(parents=True)
    for seed, split in enumerate(splits):
        labels = make_images(root / split, 20 if seed == 0 else 6, seed)
        pairs = [(image, label) for image, found in enumerate(labels) for label in found]
        content = {
            "images": [{"id": index, "file_name": f"{index:06d}.jpg"} for index in range(len(labels))],
            "annotations": [{"id": n, "image_id": i, "category_id": c + 1} for n, (i, c) in enumerate(pairs)],
            "categories": [{"id": index + 1, "name": name} for index, name in enumerate(NAMES)],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def make_voc(root: Path, year: str, splits: tuple[str, str]) -> None:
    """A devkit of one year with three of the 20 classes."""
    base = root / f"VOC{year}"
    labels = make_images(base / "JPEGImages", 26, 5)
    (base / "Annotations").mkdir()
    (base / "ImageSets" / "Main").mkdir(parents=True)
    for index, found in enumerate(labels):
        objects = "".join(f"<object><name>{NAMES[c]}</name><difficult>0</difficult></object>" for c in found)
        (base / "Annotations" / f"{index:06d}.xml").write_text(f"<annotation>{objects}</annotation>")
    for split, numbers in zip(splits, (range(20), range(20, 26)), strict=True):
        listed = "".join(f"{number:06d}\n" for number in numbers)
        (base / "ImageSets" / "Main" / f"{split}.txt").write_text(listed)


def make_table(root: Path) -> None:
    """Images in one folder and labels.csv: twenty for training, six for testing."""
    rows = [
        f"images/{index:06d}.jpg,{';'.join(NAMES[c] for c in found)},{'train' if index < 20 else 'test'}\n"
        for index, found in enumerate(make_images(root / "images", 26, 7))
    ]
    (root / "labels.csv").write_text("file,labels,split\n" + "".join(rows))


def make_shards(root: Path) -> None:
    """The images of :func:`make_table` in three tar shards, and its table."""
    make_table(root)
    paths = sorted((root / "images").iterdir())
    for number, part in enumerate((paths[:8], paths[8:16], paths[16:])):
        with tarfile.open(root / f"photographs-{number}.tar", "w") as archive:
            for path in part:
                archive.add(path, f"images/{path.name}")
                path.unlink()
