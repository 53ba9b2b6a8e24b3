"""What a folder of photographs is taken for, and which of its images train, choose the epoch and test."""

from __future__ import annotations

import csv
import shutil
import tarfile
from pathlib import Path

import pytest
from small_sets import NAMES, make_coco, make_images, make_table, make_voc

from ssgrl_fast.data.discovery import FOLDERS, discover, write_folder_table


def test_every_kind_is_found_with_its_splits(tmp_path: Path) -> None:
    make_coco(tmp_path / "coco", ("train2017", "val2017"))
    make_voc(tmp_path / "voc", "2007", ("trainval", "test"))
    make_table(tmp_path / "table")
    found = {name: discover(tmp_path / name) for name in ("coco", "voc", "table")}
    assert [each["kind"] for each in found.values()] == ["coco", "voc", "csv"]
    splits = [(each["train_split"], each["test_split"], each["val_fraction"]) for each in found.values()]
    assert splits == [("train2017", "val2017", 0.2), ("trainval", "test", 0.2), ("train", "test", 0.2)]
    assert found["table"]["root"] == str(tmp_path / "table" / "labels.csv")
    assert discover(tmp_path / "table" / "labels.csv") == found["table"]


def test_open_images_and_a_table_without_splits(tmp_path: Path) -> None:
    (tmp_path / "oidv6-train-annotations-human-imagelabels.csv").write_text("ImageID,Source,LabelName,Confidence\n")
    (tmp_path / "oidv7-class-descriptions.csv").write_text("LabelName,DisplayName\n")
    found = discover(tmp_path)
    assert (found["kind"], found["train_split"], found["folds"]) == ("openimages", "train", 5)
    table = tmp_path / "mine.csv"
    table.write_text("file,labels\na.jpg,cat\n")
    assert discover(table) == {"kind": "csv", "root": str(table), "on_error": "skip", "val_fraction": 0.2, "folds": 5}


def test_a_validation_split_beside_a_test_split_chooses_the_epoch(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    rows = [f"{word}{index}.jpg,cat,{word}" for word in ("Train", "valid", "holdout") for index in range(3)]
    table.write_text("\n".join(["file,labels,split", *rows]) + "\n")
    found = discover(tmp_path)
    assert (found["train_split"], found["val_split"], found["test_split"]) == ("Train", "valid", "holdout")
    assert "val_fraction" not in found and "folds" not in found


def test_several_kinds_and_none_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder or file; needed is a folder in Pascal VOC"):
        discover(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no known data set here, the folder is empty; needed is"):
        discover(tmp_path)
    (tmp_path / "heaps" / "deep" / "deeper").mkdir(parents=True)
    for name in ("a.csv", "b.csv", "c.zip"):
        (tmp_path / "heaps" / name).write_text("x")
    with pytest.raises(ValueError, match=r"set here, it holds .csv \(2\), .zip \(1\), folders \(1\); needed is"):
        discover(tmp_path / "heaps")
    make_coco(tmp_path / "both", ("train", "val"))
    (tmp_path / "both" / "train" / "000001.xml").write_text("<annotation/>")
    with pytest.raises(ValueError, match="may be meant as voc or as coco: choose one with --kind"):
        discover(tmp_path / "both")
    assert discover(tmp_path / "both", "coco")["kind"] == "coco"
    with pytest.raises(ValueError, match="nothing of kind csv here"):
        discover(tmp_path / "both", "csv")


def test_tables_in_parquet_and_shards_are_found(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="tables in Parquet need pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def table(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [f"{n}.jpg" for n in range(4)]
        columns = {"file": names, "labels": [["cat"]] * 4, "split": ["train", "train", "val", "test"]}
        parquet.write_table(pyarrow.table(columns), path)

    table(tmp_path / "photos" / "labels.parquet")
    make_images(tmp_path / "photos" / "images", 1, 0)
    with tarfile.open(tmp_path / "photos" / "download.tar", "w"):
        pass  # beside images a shard is no data set, unless it is asked for
    roles = {"train_split": "train", "val_split": "val", "test_split": "test"}
    found = {"kind": "csv", "root": str(tmp_path / "photos" / "labels.parquet"), "on_error": "skip", **roles}
    assert discover(tmp_path / "photos") == found == discover(tmp_path / "photos" / "labels.parquet")
    assert discover(tmp_path / "photos", "shards")["kind"] == "shards"
    for place in ("train/0.tar", "val/0.tar", "test/0.tar"):
        (tmp_path / "tars" / place).parent.mkdir(parents=True)
        (tmp_path / "tars" / place).write_bytes((tmp_path / "photos" / "download.tar").read_bytes())
    shards = {**found, "kind": "shards", "root": str(tmp_path / "tars")}
    assert discover(tmp_path / "tars") == shards
    table(tmp_path / "tars" / "labels.parquet")
    assert discover(tmp_path / "tars") == shards
    one = discover(tmp_path / "tars" / "val" / "0.tar")
    assert (one["kind"], one["folds"]) == ("shards", 5)
    (tmp_path / "tars" / "labels.csv").write_text("file,labels\n")
    with pytest.raises(ValueError, match="labels.csv and labels.parquet may both be meant"):
        discover(tmp_path / "tars")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "0.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"0.tar.gz: a compressed shard.*unpack it"):
        discover(tmp_path / "packed")


def test_one_folder_per_class_becomes_a_table(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for seed, (split, name) in enumerate([("train", "boat"), ("train", "bird"), ("test", "boat")]):
        make_images(root / split / name, 3, seed)
    shutil.copy(root / "train" / "boat" / "000001.jpg", root / "train" / "bird" / "again.jpg")
    assert discover(root) == {"kind": FOLDERS, "root": str(root), "on_error": "skip"}
    options, notes = write_folder_table(root, tmp_path / "out" / "labels.csv")
    with open(tmp_path / "out" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = {(row["file"], row["label"]) for row in rows}
    shared = next(name for name, label in labels if label == "boat" and (name, "bird") in labels)
    assert len(rows) == 10 and len({name for name, _ in labels}) == 9
    assert Path(shared).name in ("000001.jpg", "again.jpg")
    assert {row["split"] for row in rows} == {"train", "test"}
    assert (options["kind"], options["train_split"], options["test_split"]) == ("csv", "train", "test")
    assert "1 files are copies of an image in another folder" in notes[1]
    shutil.copy(root / "train" / "boat" / "000001.jpg", root / "test" / "boat" / "again.jpg")
    with pytest.raises(ValueError, match="are the same image in two splits"):
        write_folder_table(root, tmp_path / "out" / "labels.csv")
    assert set(NAMES) >= {row["label"] for row in rows}
