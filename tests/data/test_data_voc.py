"""ssgrl_fast.data.voc: devkits and flat folders, labels against the published matrices, and hostile files."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssgrl_fast.data.errors import BrokenAnnotation, BrokenImage
from ssgrl_fast.data.voc import PascalVOC, default_splits, find_devkit, read_annotation, read_list

Objects = Sequence[tuple[str, str | None]]  # (name, difficult or None where the tag is absent)


def _xml(objects: Objects) -> str:
    entries = "".join(
        f"<object><name>{name}</name>"
        + (f"<difficult>{difficult}</difficult>" if difficult is not None else "")
        + "<part><name>head</name></part><bndbox><xmin>1</xmin></bndbox></object>"
        for name, difficult in objects
    )
    return f"<annotation><filename>elsewhere.jpg</filename>{entries}</annotation>"


def _image(path: Path, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (value, 60, 30)).save(path)


def _flat(folder: Path, **images: Objects) -> Path:
    for name, objects in images.items():
        _image(folder / f"{name}.jpg")
        (folder / f"{name}.xml").write_text(_xml(objects))
    return folder


def _devkit(root: Path, lists: dict[str, str], **images: Objects) -> Path:
    devkit = root / "VOCdevkit" / "VOC2007"
    for name, objects in images.items():
        _image(devkit / "JPEGImages" / f"{name}.jpg")
        (devkit / "Annotations").mkdir(exist_ok=True)
        (devkit / "Annotations" / f"{name}.xml").write_text(_xml(objects))
    (devkit / "ImageSets" / "Main").mkdir(parents=True)
    for name, text in lists.items():
        (devkit / "ImageSets" / "Main" / f"{name}.txt").write_bytes(text.encode())
    return devkit


# ---- real sets ---------------------------------------------------------------------------------------------------


def test_voc2007_labels_equal_the_published_matrices(shared_data: Path) -> None:
    devkit = shared_data / "voc2007_mini"
    with pytest.warns(UserWarning, match=r"6\d\d of 646 images left out"):
        dataset = PascalVOC(devkit, "trainval", on_error="skip")
    assert len(dataset) + len(dataset.skipped) == 646 and len(dataset) >= 25
    assert all("no such annotation" in message for message in dataset.skipped)
    assert (
        dataset.class_names[0] == "aeroplane"
        and dataset.class_names[-1] == "tvmonitor"
        and len(dataset.class_names) == 20
    )
    assert "per-class lists" in dataset.class_source
    rows = {}
    for split in ("trainval", "test"):
        with open(shared_data / "voc_labels" / f"VOC2007_classification_{split}.csv", newline="") as file:
            header, *body = csv.reader(file)
        assert header[1:] == dataset.class_names
        rows |= {row[0]: [int(code) for code in row[1:]] for row in body}
    assert dataset.labels.tolist() == [rows[name] for name in dataset.ids]
    tests = PascalVOC(devkit, "test")
    assert tests.labels.tolist() == [rows[name] for name in tests.ids]


def test_playing_cards(shared_data: Path) -> None:
    root = shared_data / "playing_cards"
    train, test = PascalVOC(root, "train"), PascalVOC(root, "test")
    assert (len(train), len(test)) == (296, 67)
    assert train.class_names == test.class_names == ["ace", "jack", "king", "nine", "queen", "ten"]
    assert train.class_source == "names in 296 annotations, sorted"
    images = ((torch.cat([train.labels, test.labels]) == 1).sum(0)).tolist()
    assert dict(zip(train.class_names, images, strict=True)) == Counter(
        king=104, ace=102, nine=98, jack=94, queen=92, ten=91
    )
    sample = train[0]
    assert sample["image"].shape == (3, 576, 576) and sample["image"].dtype == torch.float32
    assert sample["target"].dtype == torch.int8 and sample["index"] == 0
    assert default_splits(root) == ("train", "test")


# ---- labels ------------------------------------------------------------------------------------------------------


def test_difficult_present_absent_and_mixed(tmp_path: Path) -> None:
    folder = _flat(
        tmp_path,
        a=[("cat", "1"), ("dog", None)],
        b=[("cat", "1"), ("cat", "0")],
        c=[("cat", "0"), ("cat", "1"), ("dog", "1")],
        d=[],
    )
    dataset = PascalVOC(folder)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.labels.tolist() == [[0, 1], [1, -1], [1, 0], [-1, -1]]
    assert dataset.labels.dtype == torch.int8
    assert dataset.ids == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_given_classes_set_the_columns(tmp_path: Path) -> None:
    dataset = PascalVOC(_flat(tmp_path, a=[("cat", "0")]), classes=["dog", "cat", "owl"])
    assert dataset.labels.tolist() == [[-1, 1, -1]] and dataset.class_source == "argument classes"


def test_images_of_several_kinds_beside_their_annotations(tmp_path: Path) -> None:
    folder = _flat(tmp_path, a=[("cat", "0")])
    (tmp_path / "a.jpg").rename(tmp_path / "a.JPG")
    _image(tmp_path / "b.png")
    (tmp_path / "b.xml").write_text(_xml([("dog", "0")]))
    (tmp_path / "notes.txt").write_text("not looked at")
    dataset = PascalVOC(folder)
    assert dataset.ids == ["a.JPG", "b.png"] and dataset.labels.tolist() == [[1, -1], [-1, 1]]


# ---- lists -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["x1\nx2\n", "x1\r\nx2\r\n", "x1\r\nx2", "x1\nx2", "\ufeffx1\nx2\n", "\n  x1 \n\nx2  1\n"]
)
def test_every_line_ending_keeps_every_letter(tmp_path: Path, text: str) -> None:
    _devkit(tmp_path, {"train": text}, x1=[("cat", "0")], x2=[("dog", "0")])
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2007"):
        dataset = PascalVOC(root, "train")
        assert dataset.ids == ["x1", "x2"] and dataset.labels.tolist() == [[1, -1], [-1, 1]]


def test_lists_that_cannot_be_used(tmp_path: Path) -> None:
    lists = {"train": "x1\n", "empty": "\n\r\n", "twice": "x1\nx1\n", "binary": "x1\n"}
    devkit = _devkit(tmp_path, lists, x1=[("cat", "0")])
    main = devkit / "ImageSets" / "Main"
    (main / "binary.txt").write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(FileNotFoundError, match=r"val.txt: no such list; available lists: binary, empty, train, twice"):
        PascalVOC(tmp_path, "val")
    with pytest.raises(ValueError, match="empty.txt: the list names no image"):
        PascalVOC(tmp_path, "empty")
    with pytest.raises(ValueError, match="twice.txt: image x1 is listed twice"):
        PascalVOC(tmp_path, "twice")
    with pytest.raises(BrokenAnnotation, match="binary.txt: not UTF-8"):
        read_list(main / "binary.txt")
    with pytest.raises(ValueError, match="split must name a list"):
        PascalVOC(tmp_path)
    assert default_splits(tmp_path) == ("trainval", None)


def test_per_class_lists_name_the_classes(tmp_path: Path) -> None:
    lists = {"train": "x1\n", "cat_train": "x1 1\n", "potted_plant_train": "x1 -1\n", "mine_special": "x1\n"}
    _devkit(tmp_path, lists, x1=[("cat", "0")])
    dataset = PascalVOC(tmp_path, "train")
    assert dataset.class_names == ["cat", "potted_plant"] and dataset.labels.tolist() == [[1, -1]]


def test_several_years(tmp_path: Path) -> None:
    devkit = _devkit(tmp_path, {"train": "x1\n"}, x1=[("cat", "0")])
    (devkit.parent / "VOC2012" / "ImageSets" / "Main").mkdir(parents=True)
    with pytest.raises(ValueError, match="year must choose one of VOC2007, VOC2012"):
        PascalVOC(tmp_path, "train")
    assert len(PascalVOC(tmp_path, "train", year="2007")) == 1
    with pytest.raises(FileNotFoundError, match="no VOC2010"):
        find_devkit(tmp_path, "2010")


# ---- hostile files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid XML"),
        ("<annotation><object>", "not valid XML"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "not valid XML"),
        ("<html/>", "the root element must be <annotation>, got <html>"),
        ("<annotation><object><pose/></object></annotation>", "object 1 has no <name>"),
        ("<annotation><object><name>  </name></object></annotation>", "object 1 has no <name>"),
        (_xml([("cat", "0"), ("dog", "maybe")]), r"<difficult> of object 2 \(dog\) must be 0 or 1, got 'maybe'"),
        (_xml([("unicorn", "0")]), "unknown class unicorn, expected one of cat, dog"),
    ],
)
def test_bad_annotations_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    folder = _flat(tmp_path, a=[("cat", "0")], b=[("dog", "0")])
    (folder / "b.xml").write_text(text)
    with pytest.raises(BrokenAnnotation, match=f"b.xml: {message}"):
        PascalVOC(folder, classes=["cat", "dog"])
    with pytest.warns(UserWarning, match=r"1 of 2 images left out \(on_error='skip'\): .*b.xml"):
        dataset = PascalVOC(folder, classes=["cat", "dog"], on_error="skip")
    assert dataset.ids == ["a.jpg"] and dataset.labels.tolist() == [[1, -1]]
    assert len(dataset.skipped) == 1 and "b.xml" in dataset.skipped[0]


def test_deeply_nested_entities_are_refused(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    text = f'<!DOCTYPE annotation [<!ENTITY e0 "lol">{entities}]><annotation>&e11;</annotation>'
    (tmp_path / "bomb.xml").write_text(text)
    with pytest.raises(BrokenAnnotation, match="bomb.xml"):
        read_annotation(tmp_path / "bomb.xml")


def test_missing_partners_are_named(tmp_path: Path) -> None:
    folder = _flat(tmp_path, a=[("cat", "0")], b=[("cat", "0")])
    (folder / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="b.jpg: no such image, for annotation b.xml"):
        PascalVOC(folder)
    (folder / "b.xml").unlink()
    _image(folder / "c.png")
    with pytest.raises(FileNotFoundError, match="c.xml: no such annotation, for image c.png"):
        PascalVOC(folder)
    with pytest.warns(UserWarning, match="1 of 2 images left out"):
        assert PascalVOC(folder, on_error="skip").ids == ["a.jpg"]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        PascalVOC(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="test: no such folder; available folders: train"):
        PascalVOC(tmp_path, "test")
    with pytest.raises(ValueError, match="train: no images with .xml annotations"):
        PascalVOC(tmp_path, "train")
    _flat(tmp_path / "train", a=[], b=[])
    with pytest.raises(ValueError, match="none of 2 annotations is readable and has a named object"):
        PascalVOC(tmp_path, "train")
    _image(tmp_path / "train" / "a.png")
    with pytest.raises(ValueError, match="a.png: a.jpg has the same name"):
        PascalVOC(tmp_path, "train")


def test_broken_image_raises_when_read_or_is_left_out(tmp_path: Path) -> None:
    folder = _flat(tmp_path, a=[("cat", "0")], b=[("dog", "0")], c=[("owl", "0")])
    path = folder / "b.jpg"
    path.write_bytes(path.read_bytes()[:200])
    dataset = PascalVOC(folder)
    assert len(dataset) == 3
    with pytest.raises(BrokenImage, match="b.jpg"):
        dataset[1]
    with pytest.warns(UserWarning, match=r"1 of 3 images left out \(on_error='skip'\): .*b.jpg"):
        dataset = PascalVOC(folder, on_error="skip")
    assert dataset.ids == ["a.jpg", "c.jpg"] and dataset.labels.tolist() == [[1, -1, -1], [-1, -1, 1]]
    assert [path.name for path in dataset.paths] == dataset.ids
    batch = torch.utils.data.default_collate([dataset[0], dataset[1]])
    assert batch["image"].shape == (2, 3, 576, 576)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    folder = _flat(tmp_path, a=[("cat", "0")])
    (folder / "a.jpg").write_bytes(b"gone")
    with pytest.raises(ValueError, match="all 1 images were left out.*a.jpg"):
        PascalVOC(folder, on_error="skip")
    with pytest.raises(ValueError, match="on_error must be one of 'raise', 'skip', got 'ignore'"):
        PascalVOC(folder, on_error="ignore")  # type: ignore[arg-type]


def test_image_values_are_the_transforms(tmp_path: Path) -> None:
    folder = _flat(tmp_path, a=[("cat", "0")])
    dataset = PascalVOC(folder, transform=lambda image, _: torch.from_numpy(np.array(image)).permute(2, 0, 1).float())
    decoded = np.asarray(Image.open(folder / "a.jpg"))
    np.testing.assert_array_equal(dataset[0]["image"].permute(1, 2, 0).numpy(), decoded)
