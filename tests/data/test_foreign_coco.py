"""COCO annotations as tools export them: repeated files, flags as text, parent categories, layouts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssgrl_fast.data.coco import CocoDetection, count_objects, default_splits, find_split, list_splits, read_labels
from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.errors import BrokenAnnotation


def content(**changes: Any) -> dict[str, Any]:
    """Two images; a holds a cat, b a cat and a dog."""
    kinds = [(1, 5), (2, 5), (2, 6)]
    return {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "annotations": [{"id": n, "image_id": i, "category_id": c} for n, (i, c) in enumerate(kinds)],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
    } | changes


def write(path: Path, data: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (6, 5)).save(folder / name)


# ---- one file under several ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "x/../a.jpg"])
def test_one_file_under_two_ids_is_refused_or_merged(tmp_path: Path, name: str) -> None:
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": name}]
    path = write(tmp_path / "x.json", content(images=images))
    with pytest.raises(
        BrokenAnnotation, match=r"x.json: the file .*a.jpg is listed under the image ids 1 and 2; .*merge"
    ):
        read_labels(path)
    labels, names, files = read_labels(path, repeated_files="merge")
    assert (labels.tolist(), names, files) == ([[1, 1]], ["cat", "dog"], ["a.jpg"])
    pictures(tmp_path)
    data = MultiLabelDataModule("coco", str(path), repeated_files="merge")
    assert data.train_labels.tolist() == [[1, 1]]


# ---- iscrowd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("crowd", "code"), [("ignore", 0), ("negative", -1), ("positive", 1)])
@pytest.mark.parametrize(("no", "yes"), [("0", "1"), (0, 1), (False, True), (None, 1), (0.0, 1.0)])
def test_iscrowd_as_text_and_truth_values(tmp_path: Path, crowd: Any, code: int, no: Any, yes: Any) -> None:
    annotations = [{"image_id": 1, "category_id": 5, "iscrowd": no}, {"image_id": 2, "category_id": 5, "iscrowd": yes}]
    path = write(tmp_path / "x.json", content(annotations=annotations))
    assert read_labels(path, crowd=crowd)[0].tolist() == [[1, -1], [code, -1]]


@pytest.mark.parametrize("value", ["false", 2, "", [], 0.5])
def test_iscrowd_of_another_value_is_refused(tmp_path: Path, value: Any) -> None:
    annotations = [{"image_id": 1, "category_id": 5, "iscrowd": value}]
    path = write(tmp_path / "x.json", content(annotations=annotations))
    with pytest.raises(BrokenAnnotation, match=r"x.json: 'iscrowd' must be 0 or 1 .*, got"):
        read_labels(path, crowd="ignore")


# ---- parents -----------------------------------------------------------------------------------------------------

ROBOFLOW = [
    {"id": 0, "name": "pets", "supercategory": "none"},
    {"id": 5, "name": "cat", "supercategory": "pets"},
    {"id": 6, "name": "dog", "supercategory": "pets"},
]


def test_a_parent_without_annotations_is_no_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "x.json", content(categories=ROBOFLOW))
    assert read_labels(path)[1] == ["cat", "dog"]
    assert "not a class: 'pets', without annotations and the supercategory of other categories" in caplog.text
    assert read_labels(path, classes=["dog", "cat"])[0].tolist() == [[-1, 1], [1, 1]]
    assert read_labels(path, classes=["pets", "dog", "cat"])[0].tolist() == [[-1, -1, 1], [-1, 1, 1]]
    assert count_objects(path, classes=["cat", "dog"]).tolist() == [[1, 0], [1, 1]]
    with pytest.raises(ValueError, match=r"all but those without annotations; .*\['cat'\]"):
        read_labels(path, classes=["dog"])


def test_a_parent_with_annotations_and_a_category_of_its_own_name_stay(tmp_path: Path) -> None:
    more = [*content()["annotations"], {"image_id": 1, "category_id": 0}]
    path = write(tmp_path / "x.json", content(categories=ROBOFLOW, annotations=more))
    assert read_labels(path)[1] == ["pets", "cat", "dog"]
    own = [{"id": 5, "name": "cat", "supercategory": "cat"}, {"id": 6, "name": "dog"}, {"id": 7, "name": "owl"}]
    assert read_labels(write(path, content(categories=own)))[1] == ["cat", "dog", "owl"]


@pytest.mark.long
def test_annotations_of_the_size_of_cocos_are_read_in_six_seconds(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"COCO_train2014_{n:012}.jpg", "height": 480} for n in range(82_783)]
    outline = [[n / 3 for n in range(40)]]
    annotations = [
        {"id": n, "image_id": n * 7 % 82_783, "category_id": n % 80, "iscrowd": 0, "segmentation": outline}
        for n in range(600_000)
    ]
    categories = [{"id": n, "name": f"class {n}"} for n in range(80)]
    path = write(tmp_path / "x.json", content(images=images, annotations=annotations, categories=categories))
    start = time.process_time()
    labels, names, _ = read_labels(path)
    assert time.process_time() - start <= 6  # of one core
    expected = {(n * 7 % 82_783, n % 80) for n in range(600_000)}
    assert (labels == 1).sum() == len(expected) and labels.shape == (82_783, 80) and names[79] == "class 79"


# ---- layouts -----------------------------------------------------------------------------------------------------


def test_json_inside_the_folders_of_the_splits(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path / split / "_annotations.coco.json", content(categories=ROBOFLOW))
        pictures(tmp_path / split)
    assert list_splits(tmp_path) == ["test", "train", "valid"] and default_splits(tmp_path) == ("train", "test")
    assert find_split(tmp_path, "valid") == (tmp_path / "valid", tmp_path / "valid" / "_annotations.coco.json")
    data = MultiLabelDataModule("coco", str(tmp_path), val_split="valid")
    data.setup()
    assert data.class_names == ["cat", "dog"] and data.test_dataset is not None and len(data.test_dataset) == 2
    one = MultiLabelDataModule("coco", str(tmp_path / "train"))  # the folder of one split
    assert one.train_labels.tolist() == [[1, -1], [1, 1]] and one.test_dataset is None


@pytest.mark.parametrize("images", ["ann", "ann/images", ".", "images", "train", "images/train"])
def test_json_by_path(tmp_path: Path, images: str) -> None:
    path = write(tmp_path / "ann" / "instances_train.json", content())
    pictures(tmp_path / images)
    assert find_split(path, None)[0].resolve() == (tmp_path / images).resolve()
    data = MultiLabelDataModule("coco", str(path))
    assert data.train_labels.tolist() == [[1, -1], [1, 1]] and data.test_dataset is None
    named = MultiLabelDataModule("coco", str(tmp_path), train_split="ann/instances_train.json", test_split=str(path))
    named.setup()
    assert named.test_dataset is not None and named.test_dataset.labels.tolist() == [[1, -1], [1, 1]]


def test_json_by_path_without_its_images(tmp_path: Path) -> None:
    path = write(tmp_path / "ann" / "x.json", content())
    with pytest.raises(FileNotFoundError, match="x.json: its first image a.jpg is in none of the folders"):
        find_split(path, None)
    with pytest.raises(FileNotFoundError, match="y.json: no such annotation file"):
        find_split(tmp_path, "ann/y.json")
    with pytest.raises(ValueError, match=r"x.json: a JSON file has no split 'train'; name another JSON file"):
        find_split(path, "train")
    with pytest.raises(ValueError, match="split must be one of none, or a JSON file"):
        find_split(tmp_path, None)
    pictures(tmp_path)
    with pytest.raises(ValueError, match="'repeated_files'|repeated_files must be one of"):
        CocoDetection(tmp_path, path, repeated_files="maybe")  # type: ignore[arg-type]
