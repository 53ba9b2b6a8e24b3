"""Images in tar shards: labels beside them or in a table, splits, hostile archives, and the images of a folder."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", reason="the training extra is not installed")
pytest.importorskip("pyarrow", reason="the training extra is not installed")

import pyarrow
import torch
from pyarrow import parquet
from small_sets import NAMES, make_table
from test_sources import content, write_tar

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.errors import BrokenAnnotation, BrokenImage, OutsideRoot
from ssgrl_fast.data.label_source import read_file
from ssgrl_fast.data.shard_index import ShardIndex
from ssgrl_fast.data.table import read_table
from ssgrl_fast.data.table_format import PLAIN_TABLE
from ssgrl_fast.data.tar_shards import TarShards, _readers
from ssgrl_fast.training.trained_on import image_marks

TEXT = {"a": ["boat"], "b": [], "c": ["boat", "chair"], "d": ["bird"]}


def beside(kind: str, labels: list[str]) -> bytes:
    forms = {
        "json": json.dumps({"caption": "x", "labels": labels}),
        "txt": "\n".join(labels),
        "cls": ", ".join(str(NAMES.index(label)) for label in labels),
    }
    return forms[kind].encode()


def write_beside(path: Path, kind: str, keys: str = "abcd", **more: bytes) -> Path:
    members = {}
    for number, key in enumerate(keys):
        members |= {f"{key}.{kind}": beside(kind, TEXT[key]), f"{key}.png": content(number)}
    return write_tar(path, {**members, **more})


def write_table(path: Path, rows: dict[str, list[str]], **columns: list[str]) -> None:
    table = {"file": list(rows), "labels": list(rows.values()), **columns}
    parquet.write_table(pyarrow.table(table), path)


def messages(root: Path, **options: Any) -> list[str]:
    """What "skip" leaves out; "raise" ends with the first of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = TarShards(root, on_error="skip", **options)
    with pytest.raises((BrokenAnnotation, FileNotFoundError, BrokenImage)) as caught:
        images = TarShards(root, **options)
        for index in range(len(images)):
            images.load_image(index)
    assert str(caught.value) in found.skipped
    return found.skipped


@pytest.mark.parametrize("kind", ["json", "txt", "cls"])
def test_labels_beside_images(kind: str, tmp_path: Path) -> None:
    write_beside(tmp_path / "x-0.tar", kind, "ab")
    write_beside(tmp_path / "x-1.tar", kind, "cd", **{"d.seg": b"something else"})
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    images = TarShards(tmp_path)
    assert images.ids == ["x-0.tar/a.png", "x-0.tar/b.png", "x-1.tar/c.png", "x-1.tar/d.png"]
    assert images.class_names == NAMES and images.class_source == "classes.txt"
    assert images.labels.tolist() == [[1 if name in labels else -1 for name in NAMES] for labels in TEXT.values()]
    other = pickle.loads(pickle.dumps(images)).select([3, 0])
    for index, number in enumerate((1, 0)):  # the second of its shard and the first
        assert other.load_image(index).tobytes() == decoded(number).tobytes()
    assert [TarShards(tmp_path / "x-1.tar").load_image(0).tobytes()] == [decoded(0).tobytes()]


def decoded(number: int) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(content(number))).convert("RGB")


def options_of(table: Path) -> dict[str, Any]:
    return {"image_size": 16, "resize": 16, "crops": [16], "flip": True, "val_fraction": 0.25, "root": str(table)}


@pytest.mark.parametrize("form", ["labels.csv", "labels.parquet"])
def test_a_table_gives_the_labels_splits_and_pixels_of_a_folder(form: str, tmp_path: Path) -> None:
    make_table(tmp_path / "folder")
    shards = tmp_path / "shards"
    shards.mkdir()
    names = sorted(f"images/{path.name}" for path in (tmp_path / "folder" / "images").iterdir())
    recipe = "split -l 10 -d -a 4 - lists/x- && for list in lists/*; do tar -cf ../shards/${list#*/}.tar -T $list; done"
    (tmp_path / "folder" / "lists").mkdir()
    subprocess.run(["sh", "-c", recipe], input="\n".join(names), text=True, check=True, cwd=tmp_path / "folder")
    assert len(list(shards.glob("*.tar"))) == 3
    read = read_table(tmp_path / "folder")
    if form == "labels.csv":
        (shards / form).write_bytes((tmp_path / "folder" / "labels.csv").read_bytes())
    else:
        sets = [[NAMES[c] for c, code in enumerate(row) if code == 1] for row in read_by(read, NAMES).tolist()]
        write_table(shards / form, dict(zip(read.files, sets, strict=True)), split=read.splits or [])
    mine = MultiLabelDataModule("shards", **options_of(shards))
    truth = MultiLabelDataModule("csv", **options_of(tmp_path / "folder"))
    assert mine.class_names == truth.class_names and torch.equal(mine.train_labels, truth.train_labels)
    for part in ("train_dataset", "val_dataset", "test_dataset"):
        one, other = getattr(mine, part), getattr(truth, part)
        assert [name.partition("/")[2] for name in one.ids] == other.ids
        for index in range(len(other)):
            assert torch.equal(one[index]["image"], other[index]["image"])
            assert torch.equal(one[index]["target"], other[index]["target"])
    counted = read_file(shards / form)
    assert counted.labels.shape == (20, 3) and counted.class_names == truth.class_names  # the training rows
    for one, other in zip(*(image_marks(data.test_dataset) for data in (mine, truth)), strict=True):
        assert one == other, "test images are known again in a folder"
    folds = MultiLabelDataModule("shards", **{**options_of(shards), "val_fraction": None, "folds": 4})
    assert len(folds.train_dataset) + len(folds.test_dataset) == 26
    several = [MultiLabelDataModule("shards", **options_of(shards), num_workers=n, batch_size=5) for n in (0, 2)]
    for alone, worked in zip(*(data.train_dataloader() for data in several), strict=True):
        assert torch.equal(alone["image"], worked["image"])


def read_by(read: Any, names: list[str]) -> torch.Tensor:
    return read.labels[:, [read.class_names.index(name) for name in names]]


@pytest.mark.parametrize("place", ["my-{}-0.tar", "{}/0.tar", "shards/{}-0.tar"])
def test_splits_by_the_names_of_shards(place: str, tmp_path: Path) -> None:
    for split, keys in (("train", "abc"), ("test", "d")):
        path = tmp_path / place.format(split)
        path.parent.mkdir(exist_ok=True)
        write_beside(path, "txt", keys)
    data = MultiLabelDataModule("shards", str(tmp_path))
    assert data.class_names == ["boat", "chair"] and len(data.train_dataset) == 3
    with pytest.raises(BrokenAnnotation, match=r"test.*0.tar/d.png: 'bird' is none of the 2 classes"):
        assert data.test_dataset
    data = MultiLabelDataModule("shards", str(tmp_path), classes=NAMES)
    assert data.test_dataset is not None and data.test_dataset.labels.tolist() == [[-1, 1, -1]]
    write_table(tmp_path / "labels.parquet", TEXT)
    data = MultiLabelDataModule("shards", str(tmp_path))
    assert data.train_labels.tolist() == [[-1, 1, -1], [-1, -1, -1], [-1, 1, 1]] and len(data.test_dataset or ()) == 1
    with pytest.raises(ValueError, match="no split 'extra'; splits by the names of shards: test, train"):
        TarShards(tmp_path, "extra")


def test_a_linked_folder_of_shards_is_read_or_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for place, keys in ((root / "train", "abc"), (tmp_path / "elsewhere", "d")):
        place.mkdir(parents=True)
        write_beside(place / "0.tar", "txt", keys)
    (root / "test").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutsideRoot, match="root/test"):
        TarShards(root)
    assert len(TarShards(root, "test", allow_outside=True)) == 1


def test_keys_end_at_the_first_dot_as_in_webdataset(tmp_path: Path) -> None:
    """The cases of the table in ssgrl_fast.data.shard_index, and their neighbours."""

    def read(*names: str) -> list[tuple[str, list[int]]]:
        members = {name: content(0) if name.endswith(("png", "jpg")) else f'["{name}"]'.encode() for name in names}
        write_tar(tmp_path / "s.tar", members)
        found = TarShards(tmp_path)
        chosen = [[found.class_names[c] for c, code in enumerate(row) if code == 1] for row in found.labels.tolist()]
        return list(zip((name.removeprefix("s.tar/") for name in found.ids), chosen, strict=True))

    assert read("a.png", "a.json") == [("a.png", ["a.json"])]
    assert read("a.png", "a.json", "a.meta.json") == [("a.png", ["a.json"])]
    assert read("x.1/a.1.png", "x.1/a.JSON") == [("x.1/a.1.png", ["x.1/a.JSON"])]
    names = ["a.1.png", "a.1.json", "a.2.png", "a.2.json"]
    assert read(*names) == [("a.1.png", ["a.1.json"]), ("a.2.png", ["a.2.json"])]
    assert read("a.1.png", "a.1.json", "x/a.png", "x/a.json") == [("a.1.png", names[1:2]), ("x/a.png", ["x/a.json"])]
    for found, message in (
        (["a.1.png", "a.json", "a.1.json"], r"s.tar/a.1.png has other labels .json"),
        (
            ["a.1.png", "a.2.png", "a.json"],
            r"s.tar/a.json: labels of s.tar/a.1.png, s.tar/a.2.png\? Expected one image",
        ),
        (["a.png", "a.json", "a.mask.png"], r"s.tar/a.mask.png: an image without labels"),
        (["a.1.png", "a.1.json", "a.2.json"], r"s.tar/a.2.json: labels without an image"),
        (["a.png", "a.json", "b.json"], r"s.tar/b.json: labels without an image"),
    ):
        with pytest.raises(BrokenAnnotation, match=message):
            read(*found)


def test_only_the_labels_asked_for_are_kept_and_as_names(tmp_path: Path) -> None:
    write_beside(tmp_path / "s.tar", "json", **{f"{key}.txt": bytes(1 << 16) for key in "abcd"})
    index = ShardIndex(pytest.fail)
    index.add(tmp_path / "s.tar", "s.tar", _readers(None, PLAIN_TABLE, "json"))
    assert {kind: list(cells.values()) for kind, cells in index.beside.items()} == {
        ".json": [json.dumps(names) for names in TEXT.values()]
    }
    assert TarShards(tmp_path, label_member="json").class_names == ["bird", "boat", "chair"]


def test_no_file_stays_open(tmp_path: Path) -> None:
    images = TarShards(write_beside(tmp_path / "s.tar", "json"))
    images.load_image(0)
    images.ends(1, 8)
    opened = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert images.shards[0][0] == str(tmp_path / "s.tar") and images.shards[0][0] not in opened


def test_lines_of_labels_beside_one_line_of_several_are_refused(tmp_path: Path) -> None:
    members = {"a.txt": b"boat\nchair", "a.png": content(0), "b.txt": b"boat;bird", "b.png": content(1)}
    write_tar(tmp_path / "x.tar", members)
    with pytest.raises(BrokenAnnotation, match=r"x.tar/b.png: its labels, .txt, are 'boat;bird' in one line"):
        TarShards(tmp_path)


def test_text_that_parquet_holds_as_bytes(tmp_path: Path) -> None:
    columns = {"file": [b"a.png", b"b.png"], "labels": [[b"boat"], [b"chair", b"boat"]]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "labels.parquet")
    read = read_table(tmp_path / "labels.parquet")
    assert read.class_names == ["boat", "chair"] and list(read.files) == ["a.png", "b.png"]


def test_hostile_members_are_named_or_left_out(tmp_path: Path) -> None:
    latin = os.fsdecode("caf\u00e9.png".encode("latin-1"))
    more = {
        "../e.png": content(5),
        "../e.json": b'["boat"]',
        "a.jpg": content(6),
        "b.json": b'["bird"]',
        "f.png": content(7),
        "g.png": b"no image",
        "g.json": b'["boat"]',
        "h.png": content(8),
        "h.json": b"[1]",
        "i.json": b'["boat"]',
        "j.png": content(9),
        "j.json": b'"caf\xe9"',
        "k\n.png": content(10),
        latin: content(11),
        latin.replace("png", "json"): b'["boat"]',
    }
    path = write_beside(tmp_path / "s.tar", "json")
    with tarfile.open(path, "a") as archive:
        for name, data in more.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
        link = tarfile.TarInfo("l.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = messages(tmp_path)
    expected = {
        "/../e.png: its name leads out of the archive",
        "/../e.json: its name leads out of the archive",
        "/a.jpg: has the name of s.tar/a.png before its extension: expected one image",
        "/b.json: occurs twice",
        "/f.png: an image without labels",
        "/g.png: cannot identify image file",
        "/h.png: its labels, .json: expected a list of names, got '[1]'",
        "/i.json: labels without an image",
        "/j.png: its labels, .json: 'utf-8' codec can't decode byte 0xe9",
        "/k\n.png: its name 'k\\n.png' holds the control character",
        "/l.png: a link or a sparse file",
    }
    assert len(found) == len(expected)
    for part in expected:
        assert sum(f"s.tar{part}" in message for message in found) == 1, (part, found)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = TarShards(tmp_path, on_error="skip")
    assert any("images left out (on_error='skip')" in str(each.message) for each in caught)
    assert images.ids[4:] == ["s.tar/caf\\udce9.png"] and images.load_image(4).size == (9, 7)


@pytest.mark.parametrize("kept", [600, 1100, 2300, 5_632])
def test_a_truncated_shard_is_named(kept: int, tmp_path: Path) -> None:
    path = write_beside(tmp_path / "s.tar", "json")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BrokenAnnotation, match=f"{path}: a damaged tar archive|{path}/.*: labels without an image"):
        TarShards(tmp_path)
    write_beside(tmp_path / "t.tar", "json", "cd")
    found = messages(tmp_path)
    assert any(f"{path}: a damaged tar archive" in message for message in found)
    two = path.read_bytes() + (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").unlink()
    path.write_bytes(two)
    assert "a damaged tar archive" in str(pytest.raises(BrokenAnnotation, TarShards, tmp_path).value)


def test_what_is_no_set_of_shards(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no shard"):
        TarShards(tmp_path)
    with pytest.raises(ValueError, match=r"s3://b/x: shards are read at any place.*copy or mount"):
        TarShards("s3://b/x")
    outside = write_beside(tmp_path / "s.tar", "json")
    root = tmp_path / "root"
    root.mkdir()
    (root / "s.tar").symlink_to(outside)
    with pytest.raises(OutsideRoot, match=r"s.tar \(a shard\)"):
        TarShards(root)
    assert len(TarShards(root, allow_outside=True)) == 4
    write_tar(root / "z.tar.gz", {"a.png": content(0)}, "w:gz")
    with pytest.raises(BrokenAnnotation, match=r"z.tar.gz: a compressed shard"):
        TarShards(root, allow_outside=True)
    with pytest.raises(BrokenAnnotation, match=r"beside images lie .cls and .json: name the labels by --data.label_m"):
        TarShards(write_beside(tmp_path / "s.tar", "json", **{"a.cls": b"1"}))
    with pytest.raises(BrokenAnnotation, match="numbers of classes need names"):
        TarShards(tmp_path / "s.tar", label_member="cls")
    only = write_tar(tmp_path / "s.tar", {"a.png": content(0), "a.cls": b"0 7"})
    with pytest.raises(BrokenAnnotation, match=r"s.tar/a.png: 'class number 7' is none of the 3 classes"):
        TarShards(only, classes=NAMES)
    write_tar(only, {"a.png": content(0)})
    with pytest.raises(BrokenAnnotation, match="no labels beside the images"):
        TarShards(only)


def test_a_shard_that_changes_is_not_read_at_old_places(tmp_path: Path) -> None:
    images = TarShards(write_beside(tmp_path / "s.tar", "json"))
    write_beside(tmp_path / "s.tar", "json", "d")
    with pytest.raises(BrokenImage, match="s.tar: has changed since its headers were read"):
        images.load_image(0)
    assert TarShards(tmp_path / "s.tar").load_image(0).tobytes() == decoded(0).tobytes()


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    write_beside(tmp_path / "s-0.tar", "json")
    write_beside(tmp_path / "s-1.tar", "json", "a")
    write_table(tmp_path / "labels.parquet", {**TEXT, "e.png": ["boat"]})
    found = messages(tmp_path)
    assert found[0].startswith("s-1.tar/a.png: has the row of s-0.tar/a.png") and "labels.parquet, row 1" in found[0]
    assert found[1].endswith("labels.parquet, row 5: e.png is in none of the 2 shards") and len(found) == 2
    write_table(tmp_path / "labels.parquet", {"s-0.tar/a": ["boat"], "s-1.tar/a.png": ["bird"], "b": [], "c.png": []})
    found = messages(tmp_path)
    assert found == [f"s-0.tar/d.png: an image without a row in {tmp_path / 'labels.parquet'}"]
    write_table(tmp_path / "labels.parquet", {"a": ["boat"], "b": ["whale"]})
    with pytest.raises(BrokenAnnotation, match=r"labels.parquet, row 2: 'whale' is none of the 3 classes"):
        TarShards(tmp_path, classes=NAMES)
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(BrokenAnnotation, match="labels.parquet: no table in Parquet that can be read"):
        TarShards(tmp_path)
    (tmp_path / "labels.csv").write_text("file,labels\na,boat\n")
    with pytest.raises(ValueError, match="labels.csv and labels.parquet may both be meant"):
        TarShards(tmp_path)
