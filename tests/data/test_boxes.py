"""Boxes are read as the formats define them, follow subsets and unions, and are refused where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from small_sets import NAMES, make_coco, make_voc

from ssgrl_fast.data.boxes import ImageBoxes, ObjectBox
from ssgrl_fast.data.coco import CocoDetection
from ssgrl_fast.data.digits import DigitCanvases
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.voc import PascalVOC

BOX = "<bndbox><xmin>3</xmin><ymin>1</ymin><xmax>10.5</xmax><ymax>24</ymax></bndbox>"


def make_flat(folder: Path, *objects: str, size: str = "") -> PascalVOC:
    """A folder with one image of 32 x 24 pixels."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (32, 24)).save(folder / "a.jpg")
    (folder / "a.xml").write_text(
        f"<annotation>{size}{''.join(f'<object>{each}</object>' for each in objects)}</annotation>"
    )
    return PascalVOC(folder)


def test_a_box_of_pascal_voc_names_its_first_and_last_pixel(tmp_path: Path) -> None:
    size = "<size><width>32</width><height>24</height></size>"
    hard = "<name>cat</name><difficult>1</difficult>"
    found = make_flat(tmp_path, f"<name>cat</name>{BOX}", hard + BOX, "<name>dog</name>", size=size).boxes()
    edges = (0.0, 2.0, 24.0, 10.5)  # the whole height of 24 pixels
    objects = [ObjectBox("cat", 1, edges), ObjectBox("cat", 0, edges), ObjectBox("dog", 1, None)]
    assert found == [ImageBoxes((24, 32), objects)]
    assert make_flat(tmp_path, "<name>cat</name>", size=size.replace("32", "0")).boxes()[0].size is None


@pytest.mark.parametrize("wrong", ["<bndbox><xmin>3</xmin></bndbox>", BOX.replace("24", "nan"), BOX.replace("24", "x")])
def test_a_box_that_is_none_is_an_error(tmp_path: Path, wrong: str) -> None:
    dataset = make_flat(tmp_path, f"<name>cat</name>{wrong}")
    with pytest.raises(BrokenAnnotation, match=r"a\.xml: <bndbox> of cat must hold ymin, xmin, ymax, xmax, got \["):
        dataset.boxes()


def annotate(path: Path, *annotations: dict[str, object], **image: object) -> None:
    """Another file with these annotations, and entries of the first image."""
    content = json.loads(path.read_text())
    content["images"][0] |= image
    numbered = [{"id": number, "image_id": 0, **entry} for number, entry in enumerate(annotations)]
    path.write_text(json.dumps({**content, "annotations": numbered}))


@pytest.mark.parametrize(("crowd", "codes"), [("positive", [1, 1]), ("ignore", [1, 0]), ("negative", [1])])
def test_a_box_of_coco_and_what_becomes_of_a_crowd(tmp_path: Path, crowd: str, codes: list[int]) -> None:
    make_coco(tmp_path, ("train", "val"))
    path = tmp_path / "annotations" / "instances_val.json"
    annotate(
        path,
        {"category_id": 2, "bbox": [1, 2, 3.5, 4]},
        {"category_id": 2, "iscrowd": 1, "bbox": [0, 0, 9, 8]},
        width=32,
        height=24,
    )
    dataset = CocoDetection(tmp_path / "val", path, classes=NAMES, crowd=crowd)  # type: ignore[arg-type]
    size, objects = dataset.boxes()[0]
    assert size == (24, 32) and [each.code for each in objects] == codes
    assert objects[0] == ObjectBox("bird", 1, (2.0, 1.0, 6.0, 4.5))
    assert dataset.boxes()[1] == ImageBoxes(None, [])
    annotate(path, {"category_id": 1, "bbox": [1, 2, None, 4]})
    with pytest.raises(
        BrokenAnnotation, match=r"'bbox' must be four numbers in every annotation, got \[1, 2, None, 4\]"
    ):
        dataset.boxes()


def test_boxes_follow_subsets_and_unions(tmp_path: Path) -> None:
    make_coco(tmp_path, ("train", "val"))
    parts = []
    for split, x in (("train", 5.0), ("val", 7.0)):  # the same file names in both
        path = tmp_path / "annotations" / f"instances_{split}.json"
        annotate(path, *({"category_id": 1, "image_id": row, "bbox": [x, row, 1, 1]} for row in range(6)))
        parts.append(CocoDetection(tmp_path / split, path, classes=NAMES))
    union = parts[0].joined(parts[1]).select([23, 2, 21])
    edges = [objects[0].edges for _, objects in union.boxes()]
    assert [(each[0], each[1]) for each in edges if each] == [(3.0, 7.0), (2.0, 5.0), (1.0, 7.0)]
    make_voc(tmp_path / "voc", "2007", ("trainval", "test"))
    xml = tmp_path / "voc" / "VOC2007" / "Annotations" / "000022.xml"
    xml.write_text(f"<annotation><object><name>boat</name>{BOX}</object></annotation>")
    chosen = PascalVOC(tmp_path / "voc", "test", classes=NAMES).select([1, 2])
    assert [objects[0].edges for _, objects in chosen.boxes()] == [None, (0.0, 2.0, 24.0, 10.5)]


def test_other_data_have_no_boxes() -> None:
    with pytest.raises(ValueError, match="Pascal VOC or COCO have boxes, got a DigitCanvases"):
        DigitCanvases("test", 4).boxes()
