"""VG-500 from Visual Genome's objects and from the published files; the evaluation server's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssgrl_fast import cli
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.table import LabelTable, read_table
from ssgrl_fast.data.visual_genome import build_from_objects, convert_published
from ssgrl_fast.data.voc import read_list
from ssgrl_fast.inference.comp1 import write_comp1

OBJECTS = {  # image id: names of its objects
    1: ["Man", "tree", "tree"],
    2: ["man", "dog"],
    3: ["tree"],
    4: ["man ", "traffic  light"],
    5: ["sky"],
    6: ["man", "dog", "Traffic Light"],
}


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    """Images in both folders, image 7 without objects, image 8 without a file."""
    content = [
        {"image_id": identity, "objects": [{"names": [name]} for name in names]} for identity, names in OBJECTS.items()
    ]
    content += [{"image_id": 7, "objects": []}, {"image_id": 8, "objects": [{"names": ["man"]}]}]
    (tmp_path / "objects.json").write_text(json.dumps(content))
    for identity in range(1, 8):
        folder = tmp_path / ("VG_100K" if identity % 2 else "VG_100K_2")
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / f"{identity}.jpg")
    return tmp_path


def test_the_most_frequent_names_and_a_seeded_test_set(genome: Path) -> None:
    counts = build_from_objects(genome / "objects.json", genome, classes=3, test_images=2, seed=1)
    assert counts == {"train": 5, "test": 2, "unlabelled": 3, "missing": 1}  # images 3, 5 and 7
    table = read_table(genome)
    assert table.class_names == [
        "man",
        "dog",
        "traffic light",
    ]  # in 4, 2 and 2 images; of trees' 2 the alphabet decides
    places = [f"VG_100K{'' if identity % 2 else '_2'}/{identity}.jpg" for identity in range(1, 8)]
    assert table.files == places
    for row, identity in enumerate(range(1, 8)):
        names = {" ".join(name.lower().split()) for name in OBJECTS.get(identity, [])}
        assert table.labels[row].tolist() == [1 if name in names else -1 for name in table.class_names]
    first = table.splits
    build_from_objects(genome / "objects.json", genome, classes=3, test_images=2, seed=1)
    assert read_table(genome).splits == first
    draws = set()
    for seed in range(8):
        build_from_objects(genome / "objects.json", genome, classes=3, test_images=2, seed=seed)
        draws.add(tuple(read_table(genome).splits))
    assert len(draws) > 3
    assert len(LabelTable(genome, "test")) == 2


def test_the_published_files_with_windows_lines_and_no_last_newline(genome: Path) -> None:
    (genome / "labels.json").write_text(json.dumps({f"{i}.jpg": [i % 3, 0] for i in range(1, 9)}))
    (genome / "train.txt").write_bytes(b"1.jpg\r\n2.jpg\r\n8.jpg\r\n4.jpg")
    (genome / "test.txt").write_bytes(b"5.jpg\n6.jpg\n")
    lists = {"train": genome / "train.txt", "test": genome / "test.txt"}
    assert read_list(lists["train"]) == ["1.jpg", "2.jpg", "8.jpg", "4.jpg"]
    counts = convert_published(genome / "labels.json", lists, genome, classes=3)
    assert counts == {"train": 3, "test": 2, "unlabelled": 0, "missing": 1}
    table = read_table(genome)
    assert table.class_names == ["class 0", "class 1", "class 2"] and table.splits == 3 * ["train"] + 2 * ["test"]
    assert table.labels.tolist() == [[1, 1, -1], [1, -1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]]


def test_the_published_lists_are_read_whole(shared_data: Path) -> None:
    folder = shared_data / "ssgrl_official" / "VG"
    found = {split: read_list(folder / f"{split}_list_500.txt") for split in ("train", "test")}
    assert {split: len(names) for split, names in found.items()} == {"train": 82_904, "test": 10_000}  # D31
    assert all(name.endswith(".jpg") for names in found.values() for name in names)
    assert not set(found["train"]) & set(found["test"])


BROKEN: dict[str, tuple[Any, str]] = {
    "no list": ({"a": 1}, "the top level must be a list, got a dict"),
    "entry": ([{"image_id": 1}], "entry 0 must have 'image_id' and 'objects'"),
    "twice": ([{"image_id": 1, "objects": []}] * 2, "image 1 occurs twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_objects_are_named(case: str, genome: Path) -> None:
    content, message = BROKEN[case]
    (genome / "objects.json").write_text(json.dumps(content))
    with pytest.raises(BrokenAnnotation, match=message):
        build_from_objects(genome / "objects.json", genome, classes=1, test_images=0)


def test_too_few_names_images_or_entries_are_said(genome: Path) -> None:
    with pytest.raises(ValueError, match="the existing images have 5 distinct names, fewer than classes = 6"):
        build_from_objects(genome / "objects.json", genome, classes=6, test_images=0)
    with pytest.raises(ValueError, match="test_images must be from 0 to 6"):
        build_from_objects(genome / "objects.json", genome, classes=2, test_images=7)
    (genome / "labels.json").write_text(json.dumps({"1.jpg": [0], "2.jpg": [5]}))
    (genome / "one.txt").write_text("1.jpg\n2.jpg\n")
    with pytest.raises(BrokenAnnotation, match=r"2\.jpg has class 5, expected 0 \.\. 2"):
        convert_published(genome / "labels.json", {"train": genome / "one.txt"}, genome, classes=3)
    (genome / "two.txt").write_text("1.jpg\n3.jpg\n")
    with pytest.raises(BrokenAnnotation, match=r"1\.jpg is listed twice, in train and in test"):
        lists = {"train": genome / "one.txt", "test": genome / "two.txt"}
        convert_published(genome / "labels.json", lists, genome, classes=6)
    with pytest.raises(BrokenAnnotation, match=r"no entry for 3\.jpg"):
        convert_published(genome / "labels.json", {"train": genome / "two.txt"}, genome, classes=3)
    assert not (genome / "labels.csv").exists()


def test_the_command_line(genome: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--objects", genome / "objects.json", "--root", genome, "--classes", "3", "--test-images", "2"]
    assert cli.main(["visual-genome", *map(str, given)]) == 0
    assert "3 classes" in (printed := capsys.readouterr().out) and "'missing': 1" in printed


# the evaluation server's files


def test_comp1_files_hold_every_image_and_its_confidence(tmp_path: Path) -> None:
    scores = {"2008_000001": torch.tensor([0.25, -3.0]), "2008_000002": torch.tensor([1e-7, 12.5])}
    written = write_comp1(tmp_path / "Main", ["aeroplane", "bicycle"], scores)
    assert [path.name for path in written] == ["comp1_cls_test_aeroplane.txt", "comp1_cls_test_bicycle.txt"]
    assert written[0].read_text() == "2008_000001 0.25\n2008_000002 1.00000001e-07\n"
    assert written[1].read_text() == "2008_000001 -3\n2008_000002 12.5\n"
    near = {"a": torch.tensor([0.9999999]), "b": torch.tensor([0.99999994])}  # neighbours in float32
    assert len({line.split()[1] for line in write_comp1(tmp_path, ["x"], near)[0].read_text().splitlines()}) == 2
    for values, message in (
        ({}, "no image"),
        ({"a b": torch.zeros(2)}, "an image id must be one word"),
        ({"a": torch.zeros(3)}, "a must have 2 finite scores"),
        ({"a": torch.tensor([0.0, float("nan")])}, "a must have 2 finite scores"),
    ):
        with pytest.raises(ValueError, match=message):
            write_comp1(tmp_path, ["aeroplane", "bicycle"], values)


def test_comp1_from_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def entry(name: str, *scores: float) -> dict[str, Any]:
        rows = [{"class": label, "score": score} for label, score in zip("ba", scores, strict=True)]
        return {"file": f"JPEGImages/{name}.jpg", "scores": rows}

    content = {"class_names": ["a", "b"], "files": [entry("x", 1.0, 2.0), entry("y", 3.0, 4.0)]}
    source = tmp_path / "predictions.json"
    source.write_text(json.dumps(content))
    (tmp_path / "test.txt").write_text("y")
    command = ["comp1", str(source), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0 and "2 files of 2 images" in capsys.readouterr().out
    assert (tmp_path / "out" / "comp1_cls_test_a.txt").read_text() == "x 2\ny 4\n"
    assert cli.main([*command, "--images", str(tmp_path / "test.txt")]) == 0
    assert (tmp_path / "out" / "comp1_cls_test_b.txt").read_text() == "y 3\n"
    (tmp_path / "test.txt").write_text("z")
    assert cli.main([*command, "--images", str(tmp_path / "test.txt")]) == 1
    assert "1 of 1 listed images have no scores, z first" in capsys.readouterr().err
    content["files"][0]["scores"].pop()
    source.write_text(json.dumps(content))
    assert cli.main(command) == 1 and "predict without --top" in capsys.readouterr().err
