"""Lists, tables and links that lead out of a data set's folder are refused, unless the user allows them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_sets import make_coco, make_images, make_table, make_voc

pytest.importorskip("lightning", reason="needs lightning: pip install 'ssgrl_fast[train]'")

from ssgrl_fast import cli
from ssgrl_fast.data.coco import CocoDetection
from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.errors import OutsideRoot
from ssgrl_fast.data.image_names import Borders

OPTIONS: dict[str, dict[str, Any]] = {
    "coco": {"kind": "coco"},
    "coco-json": {"kind": "coco"},
    "csv": {"kind": "csv"},
    "voc": {"kind": "voc"},
    "flat": {"kind": "voc"},
    "openimages": {"kind": "openimages"},
}
XML = "<annotation><object><name>boat</name></object><object><name>bird</name></object></annotation>"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """An image and an annotation beside the data set's folder, which is called set."""
    make_images(tmp_path / "elsewhere", 1, 3)
    (tmp_path / "elsewhere" / "000000.xml").write_text(XML)
    return tmp_path / "elsewhere" / "000000.jpg"


def make(kind: str, top: Path) -> Path:
    """A data set in top/set; its root."""
    root = top / "set"
    if kind.startswith("coco"):
        make_coco(root, ("train", "val"))
    elif kind == "csv":
        make_table(root)
    elif kind == "voc":
        make_voc(root, "2007", ("trainval", "test"))
    elif kind == "flat":
        make_images(root / "train", 4, 0)
        for image in (root / "train").glob("*.jpg"):
            image.with_suffix(".xml").write_text(XML)
    else:
        make_images(root / "train", 4, 0)
        (root / "x-class-descriptions.csv").write_text("/m/1,boat\n/m/2,bird\n")
        lines = "".join(f"{index:06d},verification,/m/{1 + index % 2},1\n" for index in range(4))
        (root / "train-annotations-human-imagelabels.csv").write_text("ImageID,Source,LabelName,Confidence\n" + lines)
    return root / "annotations" / "instances_train.json" if kind == "coco-json" else root


def put(kind: str, root: Path, name: str) -> None:
    """Have the first entry of the training images name another file."""
    if kind.startswith("coco"):
        path = root if root.is_file() else root / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        content["images"][1]["file_name"] = name
        path.write_text(json.dumps(content))
        return
    path, first = {
        "csv": (root / "labels.csv", "images/000000.jpg"),
        "voc": (root / "VOC2007" / "ImageSets" / "Main" / "trainval.txt", "000000"),
        "openimages": (root / "train-annotations-human-imagelabels.csv", "000000"),
    }[kind]
    text = path.read_text()
    assert first in text
    path.write_text(text.replace(first, name, 1))


def train(kind: str, root: Path, **more: Any) -> Any:
    data = MultiLabelDataModule(**OPTIONS[kind], root=str(root), image_size=32, **more)
    images = data.train_dataset
    for index in range(len(images)):
        images.load_image(index)
    return images


@pytest.mark.parametrize("kind", ["coco", "coco-json", "csv", "voc", "openimages"])
@pytest.mark.parametrize("way", ["dots", "absolute", "hidden dots"])
def test_names_that_lead_out_are_refused(kind: str, way: str, tmp_path: Path, outside: Path) -> None:
    if kind == "coco-json":  # a JSON file's images may lie in the folder above its own
        shutil.move(outside.parent, tmp_path.parent / f"{tmp_path.name}-elsewhere")
        outside = tmp_path.parent / f"{tmp_path.name}-elsewhere" / outside.name
    root = make(kind, tmp_path)
    name = str(outside.with_suffix("") if kind == "voc" else outside)
    if way != "absolute":
        start = {"csv": root, "voc": root / "VOC2007" / "Annotations", "coco-json": root.parent.parent / "train"}.get(
            kind, root / "train"
        )
        name = os.path.relpath(name, start)
        if way == "hidden dots":
            name = f"./nowhere/../{name}"
            for folder in {start, start.parent / "JPEGImages"} if kind == "voc" else {start}:
                (folder / "nowhere").mkdir()
    put(kind, root, name)
    for more in ({}, {"on_error": "skip"}):
        with pytest.raises(OutsideRoot) as caught:
            train(kind, root, **more)
        assert "--data.allow_outside true" in str(caught.value) and str(outside.parent) in str(caught.value)
    assert len(train(kind, root, allow_outside=True)) in (4, 20)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("whole", [False, True], ids=["file", "folder"])
def test_symbolic_links_that_lead_out_are_refused(kind: str, whole: bool, tmp_path: Path, outside: Path) -> None:
    root = make(kind, tmp_path)
    top = tmp_path / "set"
    folder = {"csv": top / "images", "voc": top / "VOC2007" / "JPEGImages"}.get(kind, top / "train")
    away = tmp_path.parent / f"{tmp_path.name}-away"
    if whole:
        shutil.move(folder, away)
        folder.symlink_to(away)
    else:
        away.mkdir()
        shutil.move(folder / "000000.jpg", away / "x.jpg")
        (folder / "000000.jpg").symlink_to(away / "x.jpg")
    with pytest.raises(OutsideRoot, match="000000"):
        train(kind, root)
    assert len(train(kind, root, allow_outside=True)) in (4, 20)


def test_a_link_that_is_named_without_its_extension(tmp_path: Path, outside: Path) -> None:
    root = make("csv", tmp_path)
    (root / "images" / "linked.jpg").symlink_to(outside)
    put("csv", root, "images/linked")
    with pytest.raises(OutsideRoot, match=r"linked.jpg \(.*labels.csv, line 2\)"):
        train("csv", root)
    assert len(train("csv", root, allow_outside=True)) == 20


def test_annotations_and_lists_too(tmp_path: Path, outside: Path) -> None:
    root = make("voc", tmp_path)
    for name in ("Annotations/000003.xml", "ImageSets/Main/trainval.txt"):
        place = root / "VOC2007" / name
        shutil.move(place, tmp_path / place.name)
        place.symlink_to(tmp_path / place.name)
        with pytest.raises(OutsideRoot, match=place.name):
            train("voc", root)
        command = ["graph", "--voc", str(root), "--split", "trainval"]
        for level in ("image", "object"):
            assert cli.main([*command, "--level", level]) == 1
            assert cli.main([*command, "--level", level, "--allow-outside"]) == 0
        shutil.move(tmp_path / place.name, place)


def test_a_json_file_does_not_choose_its_folder(tmp_path: Path, outside: Path) -> None:
    """The first file name decides in which folder near the JSON its images are; the folder must be near, too."""
    root = make("coco-json", tmp_path)
    content = json.loads(root.read_text())
    for entry in content["images"]:
        entry["file_name"] = str(outside)
    content["images"] = content["images"][:1]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] == 0]
    root.write_text(json.dumps(content))
    with pytest.raises(OutsideRoot, match="elsewhere"):
        train("coco-json", root)


def test_what_lies_inside_is_read_as_before(tmp_path: Path) -> None:
    for kind in OPTIONS:
        assert len(train(kind, make(kind, tmp_path / kind))) in (4, 20)
    # absolute paths, links and .. that stay inside
    root = tmp_path / "csv" / "set"
    (root / "link.jpg").symlink_to(root / "images" / "000001.jpg")
    (root / "more").symlink_to(root / "images")
    for name in (root / "images" / "000000.jpg", "images/../images/000000.jpg", "link.jpg", "more/000000.jpg"):
        shutil.copy(root / "labels.csv", root / "copy.csv")
        table = root / "copy.csv"
        table.write_text(table.read_text().replace("images/000000.jpg", str(name), 1))
        assert len(train("csv", table)) == 20
    # a root that is reached by a link, images that the user names, a JSON file beside its images
    (tmp_path / "by_link").symlink_to(tmp_path / "voc" / "set")
    assert len(train("voc", tmp_path / "by_link")) == 20
    shutil.move(root / "images", tmp_path / "pictures")
    (root / "labels.csv").write_text((root / "labels.csv").read_text().replace("images/", ""))
    assert len(train("csv", root, image_folder=str(tmp_path / "pictures"))) == 20
    coco = tmp_path / "coco" / "set"
    assert len(CocoDetection(coco / "train", coco / "annotations" / "instances_train.json")) == 20
    shutil.move(coco / "annotations", tmp_path / "ann")
    assert len(train("coco", coco, train_split=str(tmp_path / "ann" / "instances_train.json"))) == 20


def test_the_root_of_the_file_system_and_names_alike(tmp_path: Path) -> None:
    Borders("/").check("/etc/hosts", "list")
    (tmp_path / "set").mkdir()
    for name in ("set-2/a.jpg", "set", "set/..", "set/../set.jpg"):  # "set" itself is no file of the set
        with pytest.raises(OutsideRoot, match=r"\(list, line 3\)"):
            Borders(tmp_path / "set").check(tmp_path / name, "list, line 3")
    assert Borders(tmp_path / "set").check(tmp_path / "set" / "a" / ".." / "b.jpg", "list")


def test_train_takes_the_option(tmp_path: Path, outside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make("csv", tmp_path)
    rows = list(csv.reader((root / "labels.csv").open()))
    rows[1][0] = "../elsewhere/000000.jpg"
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    command = ["train", str(root), "--dry-run", f"--out={tmp_path / 'run'}"]
    assert cli.main(command) == 1
    assert "train, graph: --allow-outside" in capsys.readouterr().err
    assert cli.main([*command, "--allow-outside"]) == 0
    assert "allow_outside: true" in (tmp_path / "run" / "train.yaml").read_text()
