"""A CSV of files and labels: both forms, every way such files come, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.table import LabelTable, read_table
from ssgrl_fast.data.table_format import TableFormat

SETS = "file,labels,split\na.png,cat;dog,train\nb.png,,train\nc.png,bird,test\n"
COLUMNS = "file,cat,dog,bird,split\na.png,1,1,0,train\nb.png,0,0,0,train\nc.png,0,0,1,test\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_sets_and_columns_say_the_same(folder: Path) -> None:
    first = read_table(write(folder, SETS), classes=["cat", "dog", "bird"])
    second = read_table(write(folder, COLUMNS))
    assert first.files == second.files == ["a.png", "b.png", "c.png"] and first.splits == second.splits
    assert second.class_names == ["cat", "dog", "bird"]
    expected = torch.tensor([[1, 1, -1], [-1, -1, -1], [-1, -1, 1]], dtype=torch.int8)
    assert torch.equal(first.labels, expected) and torch.equal(second.labels, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.rstrip("\n").encode(),
        lambda text: text.replace(";", "|").replace(",", ";").encode(),
        lambda text: text.replace(",", "\t").encode(),
        lambda text: text.replace("a.png", '"a.png"').replace("cat;dog", '" cat ; dog;"').encode(),
        lambda text: (text + "\n,,\n").encode(),
    ],
    ids=["byte-order mark", "Windows lines", "no last newline", "semicolons", "tabs", "quotes", "empty lines"],
)
def test_every_way_such_files_come(change, folder: Path) -> None:
    plain = read_table(write(folder, SETS))
    other = read_table(write(folder, change(SETS)))
    assert (other.files, other.class_names, other.splits) == (plain.files, ["bird", "cat", "dog"], plain.splits)
    assert torch.equal(other.labels, plain.labels)


def test_names_with_commas_and_a_list_of_classes_beside_the_table(folder: Path) -> None:
    (folder / "classes.txt").write_text("dog\ncat, small\nbird\n")
    table = read_table(write(folder, 'file,labels\na.png,"cat, small;dog"\n'))
    assert table.class_names == ["dog", "cat, small", "bird"] and table.class_source == "classes.txt"
    assert table.labels.tolist() == [[1, 1, -1]]


def test_in_voc_coding_zero_is_difficult(folder: Path) -> None:
    table = read_table(write(folder, "file,cat,dog\na.png,1,0\nb.png,-1,1\n"), form=TableFormat(coding="voc"))
    assert table.labels.tolist() == [[1, 0], [-1, 1]]


BROKEN = {
    "no files": ("photo,labels\na.png,cat\n", "must name a column file or file_name or filename, got 'photo,labels'"),
    "no labels": ("file,split\na.png,train\n", "expected a column 'labels' or one column per class"),
    "no rows": ("file,labels\n", "the table has a header but no rows"),
    "short line": ("file,labels,split\na.png,cat,train\nb.png,cat\n", "line 3: 2 fields, the header has 3"),
    "twice": ("file,labels\na.png,cat\nb.png,dog\na.png,dog\n", "line 4: a.png is listed twice, first in line 2"),
    "no name": ("file,labels\n,cat\n", "line 2: no file name"),
    "value": ("file,cat\na.png,perhaps\n", "line 2: cat must be 1, 0 or -1, got 'perhaps'"),
    "columns": ("file,cat,cat\na.png,1,1\n", "columns must have distinct names"),
    "bytes": (b"file,labels\na.png,cat\nb.png,\xff\n", "line 3: not UTF-8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_table_names_the_place(case: str, folder: Path) -> None:
    text, message = BROKEN[case]
    with pytest.raises(BrokenAnnotation, match=message):
        read_table(write(folder, text))


def test_an_unknown_class_is_named_with_its_nearest(folder: Path) -> None:
    with pytest.raises(BrokenAnnotation, match="line 4: 'bird' is none of the 2 classes"):
        read_table(write(folder, SETS), classes=["cat", "dog"])
    with pytest.raises(BrokenAnnotation, match="line 2: 'dog' is none of .*did you mean 'dogs'"):
        read_table(write(folder, SETS), classes=["cat", "dogs", "bird"])
    with pytest.raises(ValueError, match=r"in only one of the two: \['bird', 'cow'\]"):
        read_table(write(folder, COLUMNS), classes=["cat", "dog", "cow"])


def test_lines_are_the_files_own(folder: Path) -> None:
    text = 'file,labels\n\n"a\u2028b.png","cat;\r\ndog"\n\nc.png,cow\n'
    table = read_table(write(folder, text))
    assert table.files == ["a\u2028b.png", "c.png"] and table.lines == [4, 6]
    assert table.class_names == ["cat", "cow", "dog"]
    with pytest.raises(BrokenAnnotation, match="line 6: 'cow' is none of the 2 classes"):
        read_table(write(folder, text), classes=["cat", "dog"])


def test_missing_images_and_splits_are_named(folder: Path) -> None:
    write(folder, SETS)
    assert sorted(set(read_table(folder).splits or ())) == ["test", "train"]
    with pytest.raises(ValueError, match="no split 'val'; available splits: test, train"):
        LabelTable(folder, "val")
    (folder / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png: no such image, listed in .*labels\.csv, line 3"):
        LabelTable(folder, "train")
    with pytest.warns(UserWarning, match="1 of 2 images left out"):
        assert LabelTable(folder, "train", on_error="skip").ids == ["a.png"]
    with pytest.raises(FileNotFoundError, match="no such table of labels"):
        LabelTable(folder / "nowhere.csv")


def test_the_datamodule_takes_a_table(folder: Path) -> None:
    write(folder, SETS)
    data = MultiLabelDataModule("csv", str(folder), image_size=8, batch_size=2)
    assert data.train_dataset.ids == ["a.png", "b.png"] and data.test_dataset.ids == ["c.png"]
    assert data.class_names == ["bird", "cat", "dog"]
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (2, 3, 8, 8)
    write(folder, "file,labels\na.png,cat\nb.png,dog\nc.png,cat\n")
    whole = MultiLabelDataModule("csv", str(folder / "labels.csv"), image_size=8, folds=3, fold=1)
    assert len(whole.train_dataset) == 2 and len(whole.test_dataset) == 1
