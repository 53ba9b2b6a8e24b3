"""ssgrl_fast.data.coco: image-level labels from COCO-format JSON, and hostile files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ssgrl_fast.data.coco import CocoDetection, default_splits, find_split
from ssgrl_fast.data.errors import BrokenAnnotation, BrokenImage


def _content() -> dict[str, Any]:
    """Three categories with ids out of order and with gaps; image 7 has a cat and a crowd of owls, image 9 nothing."""
    return {
        "images": [
            {"id": 9, "file_name": "i9.jpg"},
            {"id": 7, "file_name": "i7.jpg"},
            {"id": 30, "file_name": "i30.jpg"},
        ],
        "categories": [{"id": 44, "name": "owl"}, {"id": 3, "name": "zebra"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"image_id": 7, "category_id": 17, "iscrowd": 0},
            {"image_id": 7, "category_id": 44, "iscrowd": 1},
            {"image_id": 30, "category_id": 3, "iscrowd": 1},
            {"image_id": 30, "category_id": 3, "iscrowd": 0},
            {"image_id": 30, "category_id": 17},
        ],
    }


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    for name in ("i7", "i9", "i30"):
        Image.new("RGB", (9, 7), "#406080").save(tmp_path / "train" / f"{name}.jpg")
    _write(tmp_path, _content())
    return tmp_path


def _write(root: Path, content: Any) -> None:
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))


def _open(root: Path, **options: Any) -> CocoDetection:
    return CocoDetection(*find_split(root, "train"), **options)


def test_coco128_against_a_count_of_its_json(shared_data: Path) -> None:
    root = shared_data / "coco128"
    assert default_splits(root) == ("train2017", None)
    folder, path = find_split(root, "train2017")
    dataset = CocoDetection(folder, path)
    content = json.loads(path.read_text())
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert dataset.class_names == [names[identity] for identity in sorted(names)]
    assert dataset.class_names[:2] == ["person", "bicycle"] and dataset.class_names[-1] == "toothbrush"
    wanted = {entry["file_name"]: set() for entry in content["images"]}
    files = {entry["id"]: entry["file_name"] for entry in content["images"]}
    for entry in content["annotations"]:
        wanted[files[entry["image_id"]]].add(names[entry["category_id"]])
    found = {
        file: {dataset.class_names[column] for column in (row == 1).nonzero().flatten().tolist()}
        for file, row in zip(dataset.ids, dataset.labels, strict=True)
    }
    assert found == wanted and len(dataset) == 128
    assert sorted(dataset.labels.unique().tolist()) == [-1, 1]
    dropping = CocoDetection(folder, path, unlabelled="drop")
    assert (len(dropping), dropping.dropped) == (126, 2)
    assert int((dataset.labels == 1).sum()) == int((dropping.labels == 1).sum())
    assert dataset[5]["image"].shape == (3, 576, 576)


def test_columns_by_category_id_rows_by_image_id(coco_root: Path) -> None:
    dataset = _open(coco_root)
    assert dataset.class_names == ["zebra", "cat", "owl"]
    assert dataset.ids == ["i7.jpg", "i9.jpg", "i30.jpg"]
    assert dataset.labels.tolist() == [[-1, 1, 1], [-1, -1, -1], [1, 1, -1]]
    assert dataset.labels.dtype == torch.int8
    assert dataset.class_source == "categories of instances_train.json by id"


@pytest.mark.parametrize(("crowd", "code"), [("positive", 1), ("ignore", 0), ("negative", -1)])
def test_crowd_only_classes(coco_root: Path, crowd: str, code: int) -> None:
    labels = _open(coco_root, crowd=crowd).labels.tolist()
    assert labels == [[-1, 1, code], [-1, -1, -1], [1, 1, -1]]  # the zebra is there besides in its crowd


def test_unlabelled_images_can_be_dropped(coco_root: Path) -> None:
    dataset = _open(coco_root, unlabelled="drop")
    assert dataset.ids == ["i7.jpg", "i30.jpg"] and dataset.dropped == 1
    assert dataset.labels.tolist() == [[-1, 1, 1], [1, 1, -1]]
    content = _content()
    content["annotations"] = []
    _write(coco_root, content)
    with pytest.raises(ValueError, match="no image to use: 3 listed, 3 of them unlabelled"):
        _open(coco_root, unlabelled="drop")


def test_given_class_order(coco_root: Path) -> None:
    dataset = _open(coco_root, classes=["cat", "owl", "zebra"])
    assert dataset.class_names == ["cat", "owl", "zebra"]
    assert dataset.labels.tolist() == [[1, 1, -1], [-1, -1, -1], [1, -1, 1]]
    with pytest.raises(ValueError, match=r"instances_train.json in any order.*\['dog', 'zebra'\]"):
        _open(coco_root, classes=["cat", "owl", "dog"])


def _edit(section: str, index: int, **changes: Any) -> dict[str, Any]:
    content = _content()
    content[section][index] |= changes
    return content


def _without(section: str) -> dict[str, Any]:
    return {name: entries for name, entries in _content().items() if name != section}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _edit("annotations", 0, category_id=99),
            "annotations with category_id 99, which 'categories' does not contain",
        ),
        (_edit("annotations", 0, image_id=1234), "annotations with image_id 1234, which 'images' does not contain"),
        (
            _edit("annotations", 0, category_id="17"),
            "'category_id' must be int in every entry of 'annotations', got '17'",
        ),
        (_edit("annotations", 0, image_id=None), "'image_id' must be int"),
        (_edit("images", 0, file_name=5), "'file_name' must be str in every entry of 'images', got 5"),
        (_edit("images", 0, id=True), "'id' must be int in every entry of 'images', got True"),
        (_edit("images", 0, id=7), "image id 7 occurs twice"),
        (_edit("categories", 0, id=3), "category 3 .* occurs twice"),
        (_edit("categories", 0, name="cat"), r"category 17 \(cat\) occurs twice"),
        (_content() | {"categories": []}, "no categories"),
        (_without("categories"), "'categories' must be a list of objects"),
        (_content() | {"annotations": {"a": 1}}, "'annotations' must be a list of objects"),
        (_content() | {"images": [1, 2]}, "'images' must be a list of objects"),
        ([1, 2], "'images' must be a list of objects"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_json_that_contradicts_itself_is_named(coco_root: Path, content: Any, message: str, on_error: str) -> None:
    _write(coco_root, content)
    with pytest.raises(BrokenAnnotation, match=f"instances_train.json: .*{message}"):
        _open(coco_root, on_error=on_error)


@pytest.mark.parametrize("without", [(), ("msgspec",)], ids=["msgspec", "json"])
def test_what_is_not_read_does_not_matter(
    coco_root: Path, without: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outlines, fields and sections that nobody asks for, NaN among them; with msgspec and with Python's own parser."""
    for name in without:
        monkeypatch.setitem(sys.modules, name, None)
    plain = _open(coco_root)
    content = _content() | {"info": {"year": 2014}, "licenses": [[1, {"a": None}], 2]}
    for area in (12.5, float("nan")):
        for entry in content["annotations"]:
            entry |= {"segmentation": [[1.5, 2.0, 3.25]], "bbox": [0, 1.0, 2, 3], "area": area, "id": 1 << 40}
        _write(coco_root, content)
        dataset = _open(coco_root)
        assert torch.equal(dataset.labels, plain.labels) and dataset.ids == plain.ids
        assert dataset.class_names == plain.class_names == ["zebra", "cat", "owl"]


@pytest.mark.parametrize("text", [b"", b'{"images": [', b"\xff\xfe\xfa", b"[" * 200_000])
def test_no_json_at_all(coco_root: Path, text: bytes) -> None:
    (coco_root / "annotations" / "instances_train.json").write_bytes(text)
    with pytest.raises(BrokenAnnotation, match="instances_train.json: not valid JSON"):
        _open(coco_root)


def test_missing_and_broken_images(coco_root: Path) -> None:
    (coco_root / "train" / "i9.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="i9.jpg: no such image, listed in .*instances_train.json"):
        _open(coco_root)
    broken = coco_root / "train" / "i30.jpg"
    broken.write_bytes(broken.read_bytes()[:150])
    with pytest.warns(UserWarning, match="2 of 3 images left out"):
        dataset = _open(coco_root, on_error="skip")
    assert dataset.ids == ["i7.jpg"] and dataset.labels.tolist() == [[-1, 1, 1]]
    assert len(dataset.skipped) == 2 and {"i9.jpg", "i30.jpg"} == {
        name for name in ("i9.jpg", "i30.jpg") if any(name in message for message in dataset.skipped)
    }
    Image.new("RGB", (9, 7)).save(coco_root / "train" / "i9.jpg")
    with pytest.raises(BrokenImage, match="i30.jpg"):
        _open(coco_root)[2]


def test_places(coco_root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="instances_val.json: no such file; available splits: train"):
        find_split(coco_root, "val")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of images"):
        CocoDetection(coco_root / "nowhere", coco_root / "annotations" / "instances_train.json")
    with pytest.raises(FileNotFoundError, match="a.json: no such annotation file"):
        CocoDetection(coco_root / "train", coco_root / "a.json")
    (coco_root / "images").mkdir()
    (coco_root / "train").rename(coco_root / "images" / "train")
    assert len(_open(coco_root)) == 3
    (coco_root / "images" / "train").rename(coco_root / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no folder of images for split train"):
        _open(coco_root)
    assert default_splits(coco_root) == ("train", None)
    (coco_root / "annotations" / "instances_train2.json").write_text("{}")
    with pytest.raises(ValueError, match="the splits cannot be chosen by their names, pass them.*train, train2"):
        default_splits(coco_root)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        default_splits(coco_root / "nowhere")


def test_unknown_options(coco_root: Path) -> None:
    for option in ({"crowd": "maybe"}, {"unlabelled": "maybe"}, {"on_error": "maybe"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} must be one of .*got 'maybe'"):
            _open(coco_root, **option)
